//! What a user of Linkspan relies on, on both backends.
//!
//! Each scenario of these modules is two tests, `…::loopback::name` and `…::qemu::name`. They
//! need the image, the root file system and the CLI that `cargo xtask test` makes.

mod agent_crash;
mod boot;
mod bulk;
mod chaos;
mod checklist;
mod cli;
mod concurrency;
mod conformance;
mod false_guest;
mod faults;
mod floods;
mod images;
mod layers;
mod leaks;
mod lifecycle;
mod memory;
mod network;
mod nothing_left;
mod operations;
mod programs;
mod recorded;
mod shares;
mod stdio;
mod storage;
mod terminal;
mod wire_containers;
mod wire_devices;
mod wire_frames;
mod wire_negotiation;
mod wire_network;
mod wire_pods;
mod wire_processes;
mod wire_requests;
mod wire_storage;
mod xfs;
