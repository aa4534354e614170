use super::*;

fn exited(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

#[test]
fn how_a_machine_ended_is_told_from_what_is_known() {
    let power_off = judge(exited(0), Some("guest-shutdown"), false, "");
    assert!(power_off.clean, "{power_off:?}");
    let told = judge(ExitStatus::from_raw(9), None, true, "");
    assert!(told.clean, "{told:?}");
    let killed = judge(ExitStatus::from_raw(9), None, false, "");
    assert!(!killed.clean && killed.reason.contains("signal 9"), "{killed:?}");
    let console = "x\n[  1.0] Kernel panic - not syncing: why\n[  1.1] more\n";
    let panic = judge(exited(0), Some("guest-reset"), false, console);
    assert!(!panic.clean && panic.reason.ends_with("Kernel panic - not syncing: why"), "{panic:?}");
    let failed = judge(exited(1), None, false, "");
    assert!(!failed.clean && failed.reason.contains("code 1"), "{failed:?}");
}
