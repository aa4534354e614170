//! resolv.conf, from the adapters of a namespace.

use linkspan_protocol::resource::Network;

use crate::{Error, Result};

/// More search domains than this a resolver does not take.
const MOST_DOMAINS: usize = 6;

/// The file's text. `learnt` are servers that DHCP has named.
pub(super) fn resolv_conf<'a>(
    adapters: impl Iterator<Item = &'a Network>,
    learnt: &[String],
) -> Result<String> {
    let (mut domains, mut servers) = (Vec::new(), Vec::new());
    let add = |list: &mut Vec<String>, text: &str| {
        for entry in text.split(',').map(|entry| entry.trim().to_lowercase()) {
            // One line must stay one line.
            let plain = !entry.is_empty() && !entry.contains(char::is_whitespace);
            if plain && !list.contains(&entry) {
                list.push(entry);
            }
        }
    };
    for adapter in adapters {
        add(&mut domains, &adapter.dns_suffix);
        add(&mut servers, &adapter.dns_server_list);
    }
    learnt.iter().for_each(|server| add(&mut servers, server));
    if domains.len() > MOST_DOMAINS {
        let reason = format!("searches has more than {MOST_DOMAINS} domains: {domains:?}");
        return Err(Error::Argument { field: "DNSSuffix", reason });
    }
    let mut text = String::new();
    if !domains.is_empty() {
        text += &format!("search {}\n", domains.join(" "));
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(domains: &str, servers: &str) -> Network {
        Network {
            dns_suffix: domains.to_owned(),
            dns_server_list: servers.to_owned(),
            ..Network::default()
        }
    }

    #[test]
    fn entries_are_in_order_and_once() {
        let adapters =
            [adapter("B.test, a.test", "10.0.0.1,fd00::1"), adapter("a.test,", " 10.0.0.1")];
        let text = resolv_conf(adapters.iter(), &["10.9.9.9".to_owned()]).unwrap();
        let expected =
            "search b.test a.test\nnameserver 10.0.0.1\nnameserver fd00::1\nnameserver 10.9.9.9\n";
        assert_eq!(text, expected);
        assert_eq!(resolv_conf([].iter(), &[]).unwrap(), "");
    }

    #[test]
    fn a_seventh_domain_and_a_second_line_are_not_taken() {
        let adapters = [adapter("a,b,c,d,e,f", "")];
        assert!(resolv_conf(adapters.iter(), &[]).is_ok());
        let adapters = [adapter("a,b,c,d,e,f,g", "")];
        assert!(resolv_conf(adapters.iter(), &[]).unwrap_err().to_string().contains("6 domains"));
        let adapters = [adapter("a\nnameserver 6.6.6.6", "")];
        assert_eq!(resolv_conf(adapters.iter(), &[]).unwrap(), "");
    }
}
