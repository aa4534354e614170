//! The guest agent of a utility VM.
