//! `preprocess::shards`, as far as it reads.

#[path = "../../../../preprocess/src/shards/chat_json.rs"]
pub mod chat_json;
#[path = "../../../../preprocess/src/shards/conversation.rs"]
pub mod conversation;
#[path = "../../../../preprocess/src/shards/ledger.rs"]
pub mod ledger;
