//! A guest agent whose containers are simulated: something to try the harness on. With `--defect
//! NAME` it does one thing wrong, and the harness has to tell. One that is to be dialled says
//! `listening` when it can be.

use std::process::ExitCode;
use std::rc::Rc;

use hyperv_socket::Listener;
use linkspan_conform::broken;
use linkspan_conform::host::HostAddress;
use linkspan_conform::simulated::{BROKEN, Guest, Way};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

const USAGE: &str = "\
usage: simulated-guest [--defect NAME] --dial HOST
       simulated-guest [--defect NAME] --listen unix:PATH|tcp:ADDRESS:PORT [--stdio HOST]
       simulated-guest [--defect NAME] --pipes [--stdio HOST]
HOST is hybrid:PATH, vsock:CID or tcp:ADDRESS:PORT, as `linkspan conform guest --listen` takes it.";

enum Bridge {
    Dial,
    Unix(String),
    Tcp(String),
    Pipes,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulated-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut defect, mut way, mut bridge) = (None, Way::Nowhere, None);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value\n{USAGE}"));
        match flag.as_str() {
            "--defect" => defect = Some(broken::named(BROKEN, &value()?)?),
            "--dial" => {
                way = Way::Socket(value()?.parse::<HostAddress>()?);
                bridge = Some(Bridge::Dial);
            }
            "--stdio" => way = Way::Socket(value()?.parse::<HostAddress>()?),
            "--pipes" => bridge = Some(Bridge::Pipes),
            "--listen" => {
                let address = value()?;
                bridge = Some(match address.split_once(':') {
                    Some(("unix", path)) => Bridge::Unix(path.to_owned()),
                    Some(("tcp", address)) => Bridge::Tcp(address.to_owned()),
                    _ => return Err(format!("{address:?} is no place to listen\n{USAGE}").into()),
                });
            }
            _ => return Err(format!("{flag:?} is not known\n{USAGE}").into()),
        }
    }
    let bridge = bridge.ok_or(USAGE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(&Guest::new(way, defect), bridge)).map_err(Into::into)
}

async fn serve(guest: &Rc<Guest>, bridge: Bridge) -> std::io::Result<()> {
    match bridge {
        Bridge::Dial => Rc::clone(guest).run().await,
        Bridge::Pipes => guest.serve(tokio::io::stdin(), tokio::io::stdout()).await,
        Bridge::Unix(path) => {
            let listener = Listener::bind_unix(path.as_ref())?;
            println!("listening");
            loop {
                let (read, write) = listener.accept().await?.0.into_split();
                let _ = guest.serve(read, write).await;
            }
        }
        Bridge::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            println!("listening");
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (read, write) = stream.into_split();
                let _ = guest.serve(read, write).await;
            }
        }
    }
}
