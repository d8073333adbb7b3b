//! The Hugging Face cache of this user, and whether the server answers.

use super::Finding;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use store::hub;

/// Longest time for a name to be resolved and a connection to be made.
const PATIENCE: Duration = Duration::from_secs(4);

/// The cache and the server.
pub fn look() -> [Finding; 2] {
    let variables =
        ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"].into_iter().flat_map(|name| [name.into(), name.to_lowercase()]);
    let proxy = variables.into_iter().find_map(|name: String| std::env::var(name).ok());
    [cache(&hub::cache_folder()), server(hub::server().as_deref(), proxy.as_deref())]
}

fn cache(folder: &Path) -> Finding {
    const SUBJECT: &str = "hub cache";
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let models = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).count();
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match tempfile::tempfile_in(there) {
        Ok(_) => Finding::good(SUBJECT, format!("{}, {}", folder.display(), base::counted(models, "model"))),
        Err(error) => Finding::absent(
            SUBJECT,
            format!("{}: {error}", there.display()),
            "set HF_HOME to a folder that you may write to, or give directories instead of names",
        ),
    }
}

/// Connects, to the proxy if downloads go through one; nothing is sent.
fn server(server: Option<&str>, proxy: Option<&str>) -> Finding {
    const SUBJECT: &str = "hub server";
    let Some(server) = server else {
        return Finding::absent(SUBJECT, "not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to download models");
    };
    let (asked, name) = match proxy {
        Some(proxy) => (proxy, format!("{server} through the proxy {proxy}")),
        None => (server, server.to_string()),
    };
    let Some(address) = address(asked) else {
        let next = "give HF_ENDPOINT or HTTPS_PROXY an address such as https://huggingface.co";
        return Finding::absent(SUBJECT, format!("{asked:?} is no address"), next);
    };
    let next = "hf download OWNER/NAME --local-dir DIR on a machine with network, then give DIR instead of the name; \
                HF_ENDPOINT names another server, HTTPS_PROXY a proxy";
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(connect(&address)));
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Finding::good(SUBJECT, format!("{name} answers")),
        Ok(Err(error)) => Finding::absent(SUBJECT, format!("{name} does not answer: {error}"), next),
        Err(_) => Finding::absent(SUBJECT, format!("{name} does not answer within {} s", PATIENCE.as_secs()), next),
    }
}

fn connect((host, port): &(String, u16)) -> std::io::Result<()> {
    let mut last = std::io::Error::other("the name has no address");
    for address in (host.as_str(), *port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Host and port of an address such as `https://huggingface.co`.
fn address(url: &str) -> Option<(String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let default = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let host = rest.split('/').next().filter(|host| !host.is_empty())?;
    match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some((host.trim_matches(['[', ']']).into(), port.parse().ok()?)),
        _ => Some((host.trim_matches(['[', ']']).into(), default)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_are_read() {
        for (url, expected) in [
            ("https://huggingface.co", Some(("huggingface.co", 443))),
            ("http://mirror:8080/hf", Some(("mirror", 8080))),
            ("https://[::1]:8443", Some(("::1", 8443))),
            ("https://[::1]", Some(("::1", 443))),
            ("huggingface.co", None),
            ("https://", None),
        ] {
            assert_eq!(address(url), expected.map(|(host, port)| (host.to_string(), port)), "{url}");
        }
    }

    #[test]
    fn a_server_that_listens_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        assert_eq!(server(Some(&url), None).state, State::Good);
        assert_eq!(server(Some("https://no.such.host.invalid"), Some(&url)).state, State::Good, "the proxy is asked");
        drop(listener);
        let gone = server(Some(&url), None);
        assert_eq!(gone.state, State::Absent);
        assert!(gone.next.expect("a next step").contains("hf download"));
        assert_eq!(server(None, None).state, State::Absent);
        assert_eq!(server(Some("huggingface.co"), None).state, State::Absent, "an address needs its scheme");
    }

    #[test]
    fn models_of_the_cache_are_counted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("models--openai--clip")).expect("created");
        std::fs::create_dir(folder.path().join("datasets--x--y")).expect("created");
        assert!(cache(folder.path()).found.ends_with("1 model"));
        assert!(cache(&folder.path().join("not/yet")).found.ends_with("0 models"));
    }
}
