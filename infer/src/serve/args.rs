//! Options of `infer serve`.

use crate::args::ModelArgs;
use clap::{ArgAction, Args};
use std::net::IpAddr;
use std::path::PathBuf;

/// Where to listen, who may ask, and how much.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on. Others than 127.0.0.1 and ::1 are reachable from the network: give an --api-key then.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
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
    /// Limits.
    #[command(flatten)]
    pub limits: Limits,
}

/// How much a request may ask for.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Requests decoded together.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_batch: usize,
    /// Requests that wait when all places are taken; further ones get 429.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_queue: usize,
    /// Largest request body, bytes.
    #[arg(long, default_value_t = 20_000_000, value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Largest picture, pixels.
    #[arg(long, default_value_t = 50_000_000, value_name = "N")]
    pub max_pixels: u64,
    /// Most pictures in a request.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_images: usize,
    /// Largest `max_tokens` that a request may ask for, tokens.
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub max_tokens: usize,
    /// `max_tokens` of requests that give none, tokens.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub default_max_tokens: usize,
    /// Longest time from request to last token, queue included, seconds.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub request_timeout_seconds: u64,
    /// Fetch pictures from http and https addresses (never from private ones).
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub allow_remote_images: bool,
}
