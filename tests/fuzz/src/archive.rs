//! Any archive: it becomes an image that is known for what it is, or is refused; either way in
//! memory that does not depend on what it claims.

use linkspan_layer::{Format, Kind, LayerBuilder, Options, detect};

/// Tries an input: a byte says what becomes of it, the rest is the archive.
pub fn run(input: &[u8]) {
    let Some((&how, archive)) = input.split_first() else { return };
    let format = if how & 1 == 0 { Format::Ext4 } else { Format::Erofs };
    let options = Options { format, whiteouts: how & 2 != 0, ..Options::default() };
    let file = tempfile::NamedTempFile::new().expect("make a file");
    let Ok(reader) = linkspan_layer::decompress(archive) else { return };
    let built = LayerBuilder::new(file.as_file(), options).and_then(|mut builder| {
        builder.add_tar("fuzz", reader)?;
        builder.finish()
    });
    if built.is_err() {
        return;
    }
    let size = file.as_file().metadata().expect("the file's size").len();
    let kind = detect(file.path()).expect("what was built is known");
    match format {
        Format::Ext4 => assert_eq!(kind, Kind::Ext4 { size }),
        _ => assert_eq!(kind, Kind::Erofs { size }),
    }
}
