//! Tells whether a peer speaks the GCS bridge protocol: a guest agent ([`run::guest`]) or a
//! host's bridge.
//!
//! The protocol's description has numbered statements about each side. Each is a row here, with
//! a check; what holds for every frame is watched all the time, and told where it belongs.
//!
//! | module        | what it holds                                                       |
//! |---------------|---------------------------------------------------------------------|
//! | `statement`   | a statement, profiles, what a check needs                           |
//! | `guest`       | the statements about guests, and their checks                       |
//! | `host`        | the statements about hosts, their checks, and the guest that is played  |
//! | `target`      | how an agent is reached: sockets, TCP, pipes, `inner`: this process |
//! | `driven`      | a host on our own library, right or with a defect, for the harness to judge |
//! | `session`     | the harness as a host, `container`: with containers                 |
//! | `observer`    | what holds for every frame                                          |
//! | `environment` | disks, shells and so on beside the agent                            |
//! | `machine`     | a utility VM of our own, with disks for all checks                  |
//! | `run`         | statement by statement, within limits                               |
//! | `transcript`  | what went over the wire, decoded; `report`: what is told of it      |
//! | `simulation`  | both ends under a seeded scheduler with faults, in virtual time     |
//! | `hindsight`   | what a recording tells of a guest                                   |
//! | `capture`     | pcapng captures; `record`: between a host and a guest; `replay`: one side again |
//! | `simulated`   | a guest in this process, right or with a defect: what the harness is tried on |
//! | `wire`        | frames and documents by hand                                        |

pub mod broken;
pub mod capture;
pub mod container;
pub mod driven;
pub mod environment;
pub mod guest;
pub mod hindsight;
pub mod host;
pub mod inner;
pub mod load;
pub mod machine;
mod observer;
pub mod record;
pub mod replay;
pub mod report;
pub mod run;
pub mod session;
pub mod simulated;
pub mod simulation;
pub mod statement;
pub mod target;
pub mod transcript;
pub mod verdict;
pub mod wire;
