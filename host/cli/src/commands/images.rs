//! `linkspan image pull`, `import`, `list`, `inspect`, `remove`: container images in the store.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use linkspan_image::{Credentials, Reference, Stored};
use serde_json::{Value, json};

use crate::error::{Context, Error};
use crate::images::{PullOptions, StoreOptions};
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Pull a container image from a registry
///
/// What is in the store already is not fetched again, and what was interrupted is gone on from.
/// Every blob is checked against its digest. Without --username, what `docker login` noted is used.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  linkspan image pull debian:12
  linkspan image pull registry.example:5000/team/app@sha256:...
  linkspan image pull --username me --password-stdin registry.example/app < password")]
pub(crate) struct Pull {
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pull: PullOptions,
    /// Who asks
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Name of the image
    image: Reference,
}

/// Take an image from a file into the store
///
/// PATH is an OCI image layout (a directory, or a tar of one), an archive of `docker save`, or a
/// root file system as tar, compressed or not.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skopeo copy docker://debian:12 oci-archive:debian.tar && linkspan image import debian.tar --name debian:12
  docker save app:1 | gzip > app.tar.gz; linkspan image import app.tar.gz
  linkspan image import rootfs.tar.zst --name mine:1")]
pub(crate) struct Import {
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pull: PullOptions,
    /// Name in the store; which of several images
    #[arg(long, value_name = "NAME")]
    name: Option<Reference>,
    /// Directory or archive
    path: PathBuf,
}

/// List the images of the store
#[derive(Args, Debug)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    #[command(flatten)]
    store: StoreOptions,
}

/// Show what an image says of itself
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    #[command(flatten)]
    store: StoreOptions,
    /// Name, or the first twelve digits or more of the digest
    image: String,
}

/// Remove images, and what no other image needs
#[derive(Args, Debug)]
#[command(visible_alias = "rm")]
pub(crate) struct Remove {
    #[command(flatten)]
    store: StoreOptions,
    /// Names or digests
    #[arg(required = true)]
    images: Vec<String>,
}

impl Pull {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        let store = self.store.open()?;
        let credentials = match self.username {
            None => None,
            Some(user) => {
                let mut password = String::new();
                let read = io::stdin().lock().take(64 << 10).read_to_string(&mut password);
                read.context(|| "read the password from stdin".into())?;
                Some(Credentials {
                    user,
                    password: password.trim_end_matches(['\r', '\n']).to_owned(),
                })
            }
        };
        let progress = Progress::new(global);
        let stored = self.pull.pull(&store, &self.image, credentials, progress)?;
        told(&stored, global)
    }
}

impl Import {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        let store = self.store.open()?;
        let mut bar = Progress::new(global).transfer("importing");
        let platform = self.pull.platform();
        let name = self.name.as_ref();
        let stored = linkspan_image::import(&store, &self.path, name, &platform, &mut |at| {
            bar.at(at.what, at.bytes, at.total);
        })?;
        drop(bar);
        told(&stored, global)
    }
}

impl List {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        let store = self.store.open()?;
        let images = store.images()?;
        if global.json {
            output::json(&images.iter().map(described).collect::<Vec<_>>())?;
            return Ok(0);
        }
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                let platform = image.platform.as_ref().map_or("-".to_owned(), ToString::to_string);
                let size = store.image(&image.name).map(|image| image.layers().map(|l| l.1).sum());
                let size = size.map_or("-".to_owned(), output::bytes);
                [image.name.clone(), image.digest.hex()[..12].to_owned(), platform, size]
            })
            .collect();
        output::table(["NAME", "DIGEST", "PLATFORM", "LAYERS"], &rows)?;
        Ok(0)
    }
}

impl Inspect {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        let image = self.store.open()?.image(&self.image)?;
        let process = image.process();
        let layers: Vec<Value> = image
            .layers()
            .map(|(digest, bytes)| json!({"digest": digest, "bytes": bytes}))
            .collect();
        let document = json!({
            "name": image.name(),
            "digest": image.digest(),
            "platform": image.platform().to_string(),
            "created": image.created(),
            "process": process,
            "layers": layers,
        });
        if global.json {
            output::json(&document)?;
            return Ok(0);
        }
        output::line(format!("name        {}", image.name()))?;
        output::line(format!("digest      {}", image.digest()))?;
        output::line(format!("platform    {}", image.platform()))?;
        for (label, value) in [
            ("created", image.created().unwrap_or_default().to_owned()),
            ("entrypoint", process.entrypoint.join(" ")),
            ("command", process.cmd.join(" ")),
            ("user", process.user.clone()),
            ("directory", process.working_dir.clone()),
        ] {
            if !value.is_empty() {
                output::line(format!("{label:10}  {value}"))?;
            }
        }
        for variable in &process.env {
            output::line(format!("variable    {variable}"))?;
        }
        for (digest, bytes) in image.layers() {
            output::line(format!("layer       {digest}  {}", output::bytes(bytes)))?;
        }
        Ok(0)
    }
}

impl Remove {
    pub(crate) fn run(self, global: &Global) -> Result<u32, Error> {
        let store = self.store.open()?;
        let mut freed = 0;
        for image in &self.images {
            freed += store.remove(image)?;
        }
        match global.json {
            true => output::json(&json!({"removed": self.images, "freed_bytes": freed}))?,
            false => output::line(format!("freed {}", output::bytes(freed)))?,
        }
        Ok(0)
    }
}

fn described(image: &Stored) -> Value {
    let platform = image.platform.as_ref().map(ToString::to_string);
    json!({"name": image.name, "digest": image.digest, "platform": platform})
}

fn told(image: &Stored, global: &Global) -> Result<u32, Error> {
    match global.json {
        true => output::json(&described(image))?,
        false => output::line(format!("{}  {}", image.name, image.digest))?,
    }
    Ok(0)
}
