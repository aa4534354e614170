//! A vhost-user vsock device that hands its streams to the process it lives in.
