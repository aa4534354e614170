//! Utility VMs, containers and processes: the host end of the GCS bridge as a library.
