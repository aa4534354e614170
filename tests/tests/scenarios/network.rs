//! The network of `linkspan run`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use linkspan_tests::{Backend, User, block_on, rootfs};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for anything on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn network_a_container_reaches_what_this_host_reaches() {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut line = [0; 6];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(b"from outside\n").unwrap();
            String::from_utf8_lossy(&line).into_owned()
        });
        let user = User::of(Backend::Qemu);
        // The gateway stands for this host.
        let script = format!(
            "cat /etc/resolv.conf; ip -o -4 addr show dev eth0; ip route; \
             {{ echo hello; sleep 5; }} | nc -w 30 10.0.2.2 {port}"
        );
        let said = user.run(&[], &["sh", "-c", &script], b"").await;
        assert_eq!(said.code, Some(0), "{said:?}");
        for part in
            ["nameserver 10.0.2.3\n", "10.0.2.15/24", "default via 10.0.2.2", "from outside\n"]
        {
            assert!(said.out.contains(part), "{part} is not in {said:?}");
        }
        assert_eq!(answer.join().unwrap(), "hello\n");
    });
}

#[test]
fn network_a_published_port_leads_into_the_container() {
    block_on(async {
        let (tcp, udp) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (tcp_port, udp_port) =
            (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        drop((tcp, udp));
        let user = User::of(Backend::Qemu);
        let options = [
            "-p".to_owned(),
            format!("127.0.0.1:{tcp_port}:80"),
            "--publish".to_owned(),
            format!("127.0.0.1:{udp_port}:53/udp"),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        // A server of one connection may spend it on one that was given up meanwhile.
        let server = "trap 'exit 0' TERM; while :; do echo hi | nc -l -p 80 & wait $!; done";
        let args = user.run_args(&options, &["sh", "-c", server]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = user.linkspan(&args).spawn().expect("run linkspan");
        // Until the container listens, a connection ends without a word.
        let said = tokio::task::spawn_blocking(move || {
            let end = std::time::Instant::now() + LIMIT;
            loop {
                let mut text = String::new();
                if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", tcp_port)) {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                    let taken = UdpSocket::bind(("127.0.0.1", udp_port)).is_err();
                    let _ = stream.read_to_string(&mut text);
                    if !text.is_empty() {
                        return (text, taken);
                    }
                }
                assert!(std::time::Instant::now() < end, "nobody answers at port {tcp_port}");
                // Connecting is refused at once, and nobody tells when it will not be.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let (text, taken) = said.await.expect("ask the container");
        assert_eq!(text, "hi\n");
        assert!(taken, "the UDP port is the machine's");
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(pid, Signal::TERM).expect("end it");
        let ended = tokio::time::timeout(LIMIT, child.wait()).await.expect("it ends");
        assert!(ended.unwrap().success());
    });
}

#[test]
fn network_none_is_none_and_a_taken_port_is_told() {
    block_on(async {
        let user = User::of(Backend::Qemu);
        let said = user.run(&["--net", "none"], &["sh", "-c", "ip -o link; ip route"], b"").await;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(said.out.lines().count(), 1, "only lo: {said:?}");
        assert!(said.out.contains("lo: <LOOPBACK,UP"), "{said:?}");

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let said = user.run(&["-p", &format!("127.0.0.1:{port}:80")], &["true"], b"").await;
        assert_eq!(said.code, Some(125), "{said:?}");
        assert!(said.err.contains(&port.to_string()), "the port is named: {said:?}");
    });
}

#[test]
fn network_options_that_cannot_be_are_told() {
    block_on(async {
        let root = rootfs().to_string_lossy().into_owned();
        let user = User::of(Backend::Loopback);
        for (options, named) in [
            (&["-p", "80"][..], "80"),
            (&["-p", "80:none"], "none"),
            (&["-p", "80:80/sctp"], "sctp"),
            (&["--net", "none", "-p", "80:80"], "--net none"),
            (&["--net", "bridge"], "bridge"),
            (&["--vmm", "loopback", "--net", "user"], "--vmm loopback"),
            (&["--vmm", "loopback", "-p", "80:80"], "--vmm loopback"),
            (&["--uvm", "dev", "-p", "80:80"], "--publish"),
        ] {
            let args = [&["run"], options, &[&root, "--", "true"]].concat();
            let said = user.say(&args, b"").await;
            assert_eq!(said.code, Some(125), "{args:?}: {said:?}");
            assert!(said.err.contains(named), "{args:?} does not name {named}: {said:?}");
        }
    });
}
