//! Pictures from the network with `--allow-remote-images`: public addresses only, checked after name resolution.

use super::error::ApiError;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Whole fetch: name, connection, redirects, body.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches at most `max_bytes`. Blocks.
///
/// # Errors
/// 400: a private address, no answer, too much data. The message does not tell what a private address answered.
pub fn fetch(url: &str, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let failed = |message: String| ApiError { code: "remote_image_failed", ..ApiError::invalid("messages", message) };
    // No proxy from the environment: the check of addresses must see the real one.
    let config = Config::builder().timeout_global(Some(TIMEOUT)).max_redirects(3).proxy(None).build();
    let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), PublicOnly::default());
    let mut response = agent.get(url).call().map_err(|error| failed(format!("remote picture: {error}")))?;
    let body = response.body_mut().with_config().limit(max_bytes as u64);
    body.read_to_vec().map_err(|error| failed(format!("remote picture: {error}")))
}

/// Resolves as usual and keeps public addresses only; redirects pass through here as well.
#[derive(Debug, Default)]
struct PublicOnly(DefaultResolver);

impl Resolver for PublicOnly {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        let mut public = self.empty();
        found.iter().filter(|address| is_public(address.ip())).for_each(|address| public.push(*address));
        if public.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(public) }
    }
}

/// False for loopback, private, link-local, shared, reserved, multicast and documentation ranges, and for IPv6 forms of them.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol = a == 192 && b == 0 && c == 0;
    let benchmarking = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 224
        || shared
        || protocol
        || benchmarking
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 in IPv6: mapped, compatible (holds ::1 and ::), translated (NAT64), 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, documentation; then anything but global unicast 2000::/3.
        [0x2001, 0, ..] | [0x2001, 0xdb8, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        for private in [
            "127.0.0.1",
            "127.255.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "203.0.113.9",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
        for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
    }

    #[test]
    fn a_private_address_is_not_fetched() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("set");
        let url = format!("http://{}/x.png", listener.local_addr().expect("an address"));
        assert_eq!(fetch(&url, 1000).unwrap_err().status.as_u16(), 400);
        assert_eq!(fetch(&url.replace("127.0.0.1", "localhost"), 1000).unwrap_err().status.as_u16(), 400);
        assert!(listener.accept().is_err(), "something connected");
    }
}
