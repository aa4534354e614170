//! Builds a boot image from the command line, to try things out.
//!
//! `build OUT AGENT [KERNEL-PACKAGE] [key=value]…` with `compression=zstd:19`, `lean=no`,
//! `with=GROUP`, `without=GROUP`, `vmlinux=yes`, `add=FILE:GUESTPATH`.

use std::{error::Error, path::PathBuf};

use linkspan_initrd::{ImageBuilder, KernelPackage, ModuleForm, Modules, PackageCache};

fn main() -> Result<(), Box<dyn Error>> {
    let (settings, paths): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.contains('='));
    let mut paths = paths.into_iter().map(PathBuf::from);
    let out = paths.next().ok_or("OUT is missing")?;
    let agent = paths.next().ok_or("AGENT is missing")?;
    let package = match paths.next() {
        Some(package) => package,
        None => {
            let cache = PackageCache::for_user()?;
            cache.fetch(PackageCache::DEFAULT_PACKAGE, &mut |event| eprintln!("{event:?}"))?.path
        }
    };
    let kernel = KernelPackage::open(&package)?;
    let mut builder = ImageBuilder::new(&kernel, agent);
    let mut modules = Modules::default();
    for setting in settings {
        builder = match setting.split_once('=').unwrap_or_default() {
            ("compression", value) => builder.compression(value.parse()?),
            ("lean", "no") => builder.module_form(ModuleForm::AsShipped),
            ("vmlinux", "yes") => builder.vmlinux(true),
            ("add", spec) => builder.add_spec(spec)?,
            ("with", group) => {
                modules = modules.with(group)?;
                builder
            }
            ("without", group) => {
                modules = modules.without(group)?;
                builder
            }
            _ => return Err(format!("unknown setting {setting:?}").into()),
        };
    }
    let image = builder.modules(modules).build(&out, &mut |_| {})?;
    println!("{}", image.sizes);
    println!("{}  {}", image.initrd.sha256, image.initrd.path.display());
    Ok(())
}
