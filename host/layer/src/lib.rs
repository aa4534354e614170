//! Layer images: ext4 and VHD from directories and tar streams.
