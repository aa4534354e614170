//! The kernel calls of the guest agent: the only unsafe code on the guest's side.
