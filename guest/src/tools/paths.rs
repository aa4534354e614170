//! `wait-paths --paths A,B,C [--timeout SECONDS]`: ends once all paths exist.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Devices are announced by the kernel, but these may be any paths, so that looking is all there is.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn run(args: &[String]) -> Result<(), String> {
    let (mut paths, mut seconds) = (String::new(), 30);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, given) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let value = given.or_else(|| args.next().cloned());
        let value = value.ok_or_else(|| format!("{name} needs a value"))?;
        match name {
            "--paths" | "-paths" | "-p" => paths = value,
            "--timeout" | "-timeout" | "-t" => {
                seconds =
                    value.parse().map_err(|_| format!("timeout {value:?} is not a number"))?;
            }
            other => return Err(format!("{other:?} is not --paths or --timeout")),
        }
    }
    if paths.is_empty() {
        return Err("paths cannot be empty".to_owned());
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    paths.split(',').try_for_each(|path| wait(path, end))
}

fn wait(path: &str, end: Instant) -> Result<(), String> {
    loop {
        match Path::new(path).symlink_metadata() {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("look at {path:?}: {error}")),
        }
        if Instant::now() >= end {
            return Err(format!(
                "timeout while waiting for path {path:?} to appear: context deadline exceeded"
            ));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn paths_are_waited_for_until_the_limit() {
        run(&words("--paths /proc,/dev/null")).unwrap();
        run(&words("-p=/proc -t 0")).unwrap();
        for (line, named) in [
            ("-p /proc,/no/such -t 0", "\"/no/such\" to appear: context deadline exceeded"),
            ("-p /dev/null/x -t 9", "/dev/null/x"),
            ("-t 3", "paths cannot be empty"),
            ("-p /proc -t soon", "soon"),
            ("-x 3", "-x"),
        ] {
            let error = run(&words(line)).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
