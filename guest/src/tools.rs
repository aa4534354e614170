//! The programs that hosts and OCI hooks call in a utility VM, by their names.
//!
//! | name              | does                                                              |
//! |-------------------|-------------------------------------------------------------------|
//! | `generichook`     | runs a program, with the container's id, pid and annotations put into its arguments |
//! | `install-drivers` | loads the kernel modules of a directory                           |
//! | `wait-paths`      | waits until paths exist                                           |

mod drivers;
mod hook;
mod paths;

/// Runs the tool of that name; `None` if it is none.
pub fn run(name: &str, args: &[String]) -> Option<u8> {
    let outcome = match name {
        "generichook" => hook::run(args),
        "install-drivers" => drivers::run(args),
        "wait-paths" => paths::run(args),
        "gcstools" => {
            let known = "generichook, install-drivers, wait-paths";
            match args.split_first() {
                Some((name, args)) if name != "gcstools" => {
                    if let Some(code) = run(name, args) {
                        return Some(code);
                    }
                    eprintln!("unknown command: {name}; there are {known}");
                }
                _ => eprintln!("gcstools is called by one of its names: {known}"),
            }
            return Some(127);
        }
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{name}: {error}");
            1
        }
    })
}
