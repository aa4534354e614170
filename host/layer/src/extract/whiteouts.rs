//! Whiteouts of overlayfs as OCI layers have them.

use crate::collect::{opaque_name, whiteout_of};
use crate::error::Problem;
use crate::tree::{Attributes, Content, Node, NodeId, Place, Tree};

/// What overlayfs says of a directory that hides what is below it.
const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
/// What it says that no OCI layer can.
const ONLY_OVERLAY: [&[u8]; 4] = [
    b"trusted.overlay.redirect",
    b"user.overlay.redirect",
    b"trusted.overlay.metacopy",
    b"user.overlay.metacopy",
];

/// Changes a whole tree. An error comes with the path that it is about.
pub(super) fn to_oci(tree: &mut Tree) -> Result<(), (Vec<u8>, Problem)> {
    let mut pending = vec![(Tree::ROOT, Vec::new())];
    while let Some((directory, path)) = pending.pop() {
        let mut marks = Vec::new();
        for (name, child) in tree.entries_backwards(directory) {
            let path =
                if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
            let node = tree.node(child);
            let xattrs = &node.attributes.xattrs;
            if let Some(foreign) = xattrs.iter().find(|x| ONLY_OVERLAY.contains(&&*x.key())) {
                let key = String::from_utf8_lossy(&foreign.key()).into_owned();
                return Err((path, Problem::OnlyOverlay(key)));
            }
            match &node.content {
                Content::Directory(_) => pending.push((child, path)),
                Content::CharDevice { major: 0, minor: 0 } => {
                    let mark = whiteout_of(name);
                    if mark.len() > 255 {
                        return Err((path, Problem::BadName));
                    }
                    marks.push((name.to_vec(), mark));
                }
                _ => {}
            }
        }
        for (name, mark) in marks {
            tree.unlink(directory, &name);
            put_mark(tree, directory, &mark);
        }
        let xattrs = &mut tree.node_mut(directory).attributes.xattrs;
        let before = xattrs.len();
        xattrs.retain(|xattr| !(OPAQUE.contains(&&*xattr.key()) && xattr.value() == b"y"));
        if xattrs.len() != before {
            put_mark(tree, directory, opaque_name());
        }
    }
    Ok(())
}

fn put_mark(tree: &mut Tree, directory: NodeId, name: &[u8]) {
    let content = Content::File { size: 0, place: Place::Extents(Box::default()) };
    let attributes = Attributes { mode: 0o644, ..Attributes::default() };
    let mark = tree.add(Node { attributes, content });
    tree.link(directory, name, mark);
}
