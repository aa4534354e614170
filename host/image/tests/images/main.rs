//! Images as they come: layouts, archives, registries; and what must not pass.

mod fixture;
mod importing;
mod pulling;
mod registry;
