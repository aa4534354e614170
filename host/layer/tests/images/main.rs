//! Images as others see them: e2fsck finds nothing wrong, and the kernel shows what went in.

mod archives;
mod differing;
mod directories;
mod extracting;
mod generated;
mod hostile;
mod inspect;
mod scratch;
mod verity;
