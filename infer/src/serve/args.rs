//! Options of `infer serve`.

use crate::args::ModelArgs;
use clap::{ArgAction, Args, value_parser};
use cli::values::at_least_1;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Where to listen, who may ask, and how much.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on. Addresses other than 127.0.0.1 and ::1 are reachable from the network: give an --api-key.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP", value_parser = host)]
    pub host: IpAddr,
    /// Port; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Name under which the model is served (default: the directory's name).
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Requests to /v1 and /metrics must carry `Authorization: Bearer KEY`.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// File whose first line is the key (a key on the command line can be seen by other users of the machine).
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub api_key_file: Option<PathBuf>,
    /// Names and origins.
    #[command(flatten)]
    pub browsers: BrowserArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: Limits,
    /// Connections.
    #[command(flatten)]
    pub connections: ConnectionArgs,
}

/// An address to listen on.
fn host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    text.parse().map_err(|_| {
        "expected an address: 127.0.0.1 or localhost for this machine alone, 0.0.0.0 for all networks".into()
    })
}

/// What web pages of others may do.
#[derive(Args, Clone, Debug)]
pub struct BrowserArgs {
    /// Further name in the Host header under which to answer (repeatable): `llava.example.org`; `.example.org` for a domain
    /// with all names in it; `*` for any name.
    ///
    /// Needed behind a proxy that sends its own host name (nginx: `proxy_set_header Host $host`). The check protects against DNS
    /// rebinding: a foreign web page's host name may resolve to this machine, and the page could then read answers. Without a
    /// key, a server on a loopback address accepts addresses, `localhost`, names of one word, names ending in `.localhost` or
    /// `.internal`, and requests without a Host; others get 421. With an --api-key, or on other addresses without this option,
    /// names are not checked. /health accepts every name.
    #[arg(long, value_name = "NAME")]
    pub allowed_host: Vec<String>,
    /// Origin whose web pages may use the API from a browser (repeatable): `https://app.example.org`,
    /// `http://localhost:3000`; `*` for every page. Default: only the server's own page.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
}

/// How long and how many.
#[derive(Args, Clone, Debug)]
pub struct ConnectionArgs {
    /// Most open connections. Default: 1024, or fewer where the process may not open as many descriptors.
    ///
    /// When all are taken, the one that has been without a request for longest is closed for a new one; where each has a
    /// request in progress, new ones get 503 (except for /health).
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub max_connections: Option<usize>,
    /// Longest time from the first byte of a request to the end of its headers, seconds.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = value_parser!(u64).range(1..))]
    pub header_timeout_seconds: u64,
    /// Longest time that a connection stays open without a request, seconds.
    ///
    /// Give more than a proxy before the server does (often 60), so that the proxy never sends a request on a connection that is being
    /// closed.
    #[arg(long, default_value_t = 75, value_name = "S", value_parser = value_parser!(u64).range(1..))]
    pub idle_timeout_seconds: u64,
    /// Longest time that requests in progress may take to finish after SIGTERM or SIGINT, seconds.
    ///
    /// New requests get 503 meanwhile. Answers that are not finished then end with an error. Give less than the supervisor
    /// waits before it kills (docker stop: 10, Kubernetes: 30). A second signal ends them at once.
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub shutdown_timeout: u64,
}

/// How much a request may ask for.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Requests decoded together.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least_1)]
    pub max_batch: usize,
    /// Requests that wait when all places are taken; further ones get 429.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_queue: usize,
    /// Largest request body, and largest sum of a request's remote pictures, bytes.
    #[arg(long, default_value_t = 20_000_000, value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Memory for requests before the model has read them, bytes.
    ///
    /// Half is for bodies, picture files and pixel values, half for decoding pictures and tokenizing texts. A request that
    /// does not fit waits up to 30 s and then gets 503. The model's own memory is not in it.
    #[arg(long, default_value_t = 1_000_000_000, value_name = "BYTES")]
    pub max_request_memory: usize,
    /// Largest picture, pixels.
    #[arg(long, default_value_t = 50_000_000, value_name = "N")]
    pub max_pixels: u64,
    /// Most pictures in a request.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_images: usize,
    /// Largest `max_tokens` that a request may ask for, tokens.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = at_least_1)]
    pub max_tokens: usize,
    /// `max_tokens` of requests that give none, tokens.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub default_max_tokens: usize,
    /// Longest time from request to last token, queue included, seconds; then 504, which OpenAI's clients do not repeat.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub request_timeout_seconds: u64,
    /// Fetch pictures from http and https addresses (never from private ones).
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub allow_remote_images: bool,
}
