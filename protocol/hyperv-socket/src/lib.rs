//! One stream and listener for tokio over AF_HYPERV, AF_VSOCK and hybrid-vsock Unix sockets.
