//! Builds the utility VM's boot image: kernel, modules, agent, reproducibly.
