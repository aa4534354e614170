//! Scenario tests on real utility VMs and on the loopback backend.
