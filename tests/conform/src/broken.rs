//! Peers that are broken on purpose, and whether the statements tell.

use crate::run::Report;

/// A broken peer.
#[derive(Clone, Copy, Debug)]
pub struct Broken<D> {
    /// What is wrong.
    pub defect: D,
    /// In words.
    pub what: &'static str,
    /// The statements that do not hold then, and no others.
    pub told_by: &'static [u32],
}

impl<D: std::fmt::Debug> Broken<D> {
    /// How a report of it differs from what should tell it; `None` if it does not.
    pub fn mistold(&self, report: &Report) -> Option<String> {
        let told_by = report.deviations();
        if told_by == self.told_by {
            return None;
        }
        let differs = |id| told_by.contains(id) != self.told_by.contains(id);
        let outcomes = report.outcomes.iter().filter(|outcome| differs(&outcome.id));
        let reasons: Vec<String> = outcomes
            .map(|outcome| format!("  {} {:?} {:?}", outcome.id, outcome.verdict, outcome.reason))
            .collect();
        let (defect, what, reasons) = (&self.defect, self.what, reasons.join("\n"));
        Some(format!("{defect:?} ({what}): told by {told_by:?}, not {:?}\n{reasons}", self.told_by))
    }
}

/// The defect of that name.
///
/// # Errors
/// When there is none: the names that there are.
pub fn named<D: std::fmt::Debug + Copy>(all: &[Broken<D>], name: &str) -> Result<D, String> {
    let names: Vec<String> = all.iter().map(|broken| format!("{:?}", broken.defect)).collect();
    match names.iter().position(|known| known == name) {
        Some(at) => Ok(all[at].defect),
        None => Err(format!("there is no defect {name:?}; there are {}", names.join(", "))),
    }
}

/// The defects of one kind of peer, and all of them with what should tell.
macro_rules! defects {
    ($kind:literal; $($name:ident $what:literal => [$($id:literal)*];)*) => {
        #[doc = $kind]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "`BROKEN` has a sentence for each")]
        pub enum Defect { $($name),* }

        /// All defects.
        pub const BROKEN: &[$crate::broken::Broken<Defect>] = &[$(
            $crate::broken::Broken { defect: Defect::$name, what: $what, told_by: &[$($id),*] }
        ),*];
    };
}

pub(crate) use defects;
