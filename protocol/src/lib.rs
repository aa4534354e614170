//! The GCS bridge protocol, without IO: frames, messages, and both ends' state machines.
