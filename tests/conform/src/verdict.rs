//! What came of a check.

use std::io;

use serde::Serialize;

/// What a check ends with when it does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The peer does not do what the statement says.
    Fail(String),
    /// It does not, and its counterparts live with it.
    Tolerated(String),
    /// The statement could not be checked.
    Skip(String),
}

/// `Ok` is a pass.
pub type Checked<T = ()> = Result<T, Stop>;

impl Stop {
    /// A failure, said in a sentence.
    pub fn fail(why: impl Into<String>) -> Self {
        Self::Fail(why.into())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Fail(error.to_string())
    }
}

/// Fails with a sentence unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::verdict::Stop::Fail(format!($($text)*)));
        }
    };
}
pub(crate) use ensure;

/// What is told of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// It does not, and counterparts live with it.
    Tolerated,
    /// It was not checked.
    Skipped,
}

impl Verdict {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Tolerated => "tolerated",
            Self::Skipped => "skipped",
        }
    }
}
