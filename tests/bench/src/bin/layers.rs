//! `cargo xtask bench --layers`: how fast and in how much memory a tar becomes a file system, beside
//! the tools that others use, on the same trees in one run.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

/// Measures the conversion of layers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The `linkspan` program, built for release.
    #[arg(long, env = "LINKSPAN_BIN", default_value = "target/release/linkspan")]
    linkspan: PathBuf,
    /// Where trees and images are put, some gigabytes [default: the temporary directory]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Small files of 1 KiB.
    #[arg(long, default_value_t = 200_000)]
    files: u64,
    /// MiB of the one large file.
    #[arg(long, default_value_t = 2048)]
    megabytes: u64,
    /// The reference's `tar2ext4`, to be measured in the same run; else figures of another day count.
    #[arg(long, value_name = "FILE")]
    tar2ext4: Option<PathBuf>,
    /// How often each is run; the quickest counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// For this program itself: run a command and tell its time and peak memory.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    child: Vec<String>,
}

/// Seconds and bytes of the reference's tar2ext4 on this kind of machine; docs/performance.md.
const REFERENCE: [(&str, f64, u64); 2] =
    [("small files", 2.3, 150 << 20), ("one large file", 0.96, 150 << 20)];

const TAR2EXT4: &str = "tar2ext4";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some((program, words)) = arguments.child.split_first() {
        return child(program, words);
    }
    let room = match &arguments.directory {
        Some(directory) => tempfile::tempdir_in(directory)?,
        None => tempfile::tempdir()?,
    };
    let mut figures = Vec::new();
    println!("| source | made by | seconds | against tar2ext4 | peak memory | image |");
    println!("|---|---|---:|---:|---:|---:|");
    for (source, mut reference, _) in REFERENCE {
        let tree = room.path().join("tree");
        let tar = room.path().join("source.tar");
        std::fs::create_dir(&tree)?;
        match source {
            "small files" => small_files(&tar, &tree, arguments.files)?,
            _ => large_file(&tar, &tree, arguments.megabytes)?,
        }
        let theirs = arguments.tar2ext4.iter().map(|program| {
            let image = room.path().join("image");
            let words = [program.as_path(), Path::new("-i"), &tar, Path::new("-o"), &image];
            (TAR2EXT4, words.map(|word| word.display().to_string()).to_vec())
        });
        let ours = commands(&arguments.linkspan, &tar, &tree, room.path());
        for (name, words) in theirs.chain(ours) {
            let figure = measure(&words, room.path(), arguments.runs);
            let (seconds, peak, image) = figure.with_context(|| name.to_owned())?;
            if name == TAR2EXT4 {
                reference = seconds;
            }
            let ratio = reference / seconds;
            println!(
                "| {source} | {name} | {seconds:.2} | {ratio:.1} x | {} MiB | {} MiB |",
                peak >> 20,
                image >> 20
            );
            figures.push(json!({
                "source": source, "by": name, "seconds": seconds, "peak_bytes": peak,
                "image_bytes": image, "reference_seconds": reference,
            }));
        }
        std::fs::remove_dir_all(&tree)?;
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// What is compared: each writes the file `image` in `room`.
fn commands(
    linkspan: &Path,
    tar: &Path,
    tree: &Path,
    room: &Path,
) -> Vec<(&'static str, Vec<String>)> {
    let text = |path: &Path| path.display().to_string();
    let image = text(&room.join("image"));
    let ours = |more: &[&str]| {
        let words = [&text(linkspan), "layer", "build", "-q", &text(tar), "-f", "-o", &image];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let size = format!("{}M", 4096);
    let ext4 = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", "250000", "-d"];
    let ext4 = ext4.iter().map(|word| (*word).to_owned());
    let erofs = vec!["mkfs.erofs".to_owned(), image.clone(), text(tree)];
    vec![
        ("cat", vec!["cat".to_owned(), text(tar)]),
        ("linkspan, ext4", ours(&[])),
        ("linkspan, ext4, verity", ours(&["--verity"])),
        ("linkspan, EROFS", ours(&["--format", "erofs"])),
        ("linkspan, EROFS, verity", ours(&["--format", "erofs", "--verity"])),
        ("mke2fs -d", ext4.chain([text(tree), image.clone(), size]).collect()),
        ("mkfs.erofs", erofs),
    ]
}

/// The quickest of several runs: seconds, peak memory and size of the image in bytes.
fn measure(words: &[String], room: &Path, runs: usize) -> Result<(f64, u64, u64)> {
    let image = room.join("image");
    let (mut best, mut peak) = (f64::MAX, 0);
    for _ in 0..runs.max(1) {
        if image.exists() {
            std::fs::remove_file(&image)?;
        }
        let output = Command::new(std::env::current_exe()?)
            .arg("--child")
            .args(words)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "{words:?} ends with {}", output.status);
        let told: Value = serde_json::from_slice(&output.stdout)?;
        best = best.min(told["seconds"].as_f64().context("seconds")?);
        peak = peak.max(told["peak"].as_u64().context("peak")?);
    }
    let size = image
        .metadata()
        .map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
    Ok((best, peak, size))
}

/// Apart from the others, so that the peak of memory is this command's alone.
fn child(program: &str, words: &[String]) -> Result<()> {
    let start = Instant::now();
    let status = Command::new(program).args(words).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("run {program}"))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(status.success(), "{program} ends with {status}");
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * 1024;
    println!("{}", json!({"seconds": seconds, "peak": peak}));
    Ok(())
}

/// Names and contents in tar and tree, a thousand in each directory.
fn small_files(tar: &Path, tree: &Path, files: u64) -> Result<()> {
    let mut out = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(tar)?));
    for number in 0..files {
        let directory = format!("{}", number / 1000);
        if number % 1000 == 0 {
            std::fs::create_dir(tree.join(&directory))?;
        }
        let content = bytes(number, 1024);
        let name = format!("{directory}/file-{number}");
        std::fs::write(tree.join(&name), &content)?;
        append(&mut out, &name, content.len() as u64, &content[..])?;
    }
    out.into_inner()?.flush()?;
    Ok(())
}

fn large_file(tar: &Path, tree: &Path, megabytes: u64) -> Result<()> {
    let path = tree.join("large");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    for number in 0..megabytes {
        file.write_all(&bytes(number, 1 << 20))?;
    }
    file.flush()?;
    let mut out = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(tar)?));
    append(&mut out, "large", megabytes << 20, File::open(&path)?)?;
    out.into_inner()?.flush()?;
    Ok(())
}

fn append(
    out: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl std::io::Read,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size);
    Ok(out.append_data(&mut header, name, content)?)
}

/// Bytes that no file system can leave out.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
