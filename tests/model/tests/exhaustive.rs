//! Every order of events within the bounds: the model holds, and each wrong variant is found.

use linkspan_model::{Bounds, REACHED, Reconnects, Variant, WRONG};
use stateright::{Checker, Model};

/// The bounds that the documentation states.
const BOUNDS: Bounds = Bounds { pieces: 4, bridge_cuts: 3, stream_cuts: 3 };

fn failing(model: Reconnects) -> (usize, Vec<&'static str>) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    let found = checker.discoveries();
    let mut names: Vec<_> = found.keys().copied().collect();
    // What has to be reached is found when it is.
    match names.iter().position(|name| *name == REACHED) {
        Some(at) => drop(names.remove(at)),
        None => names.push(REACHED),
    }
    names.sort_unstable();
    (checker.unique_state_count(), names)
}

#[test]
fn the_model_holds_in_every_order_of_events() {
    let (states, failing) = failing(Reconnects { bounds: BOUNDS, variant: Variant::Right });
    println!("{states} states");
    assert_eq!(failing, [""; 0]);
    assert!(states > 50_000, "only {states} states: is everything tried?");
}

#[test]
fn each_wrong_variant_is_found_by_the_property_that_it_breaks() {
    let bounds = Bounds { pieces: 2, bridge_cuts: 1, stream_cuts: 1 };
    for (variant, property) in WRONG {
        let (_, failing) = failing(Reconnects { bounds, variant });
        assert!(failing.contains(&property), "{variant:?}: {failing:?}");
    }
    let (_, failing) = failing(Reconnects { bounds, variant: Variant::Right });
    assert_eq!(failing, [""; 0]);
}
