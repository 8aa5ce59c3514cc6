//! Where the tests connect, instead of a server on port 5433 that trusts `postgres`: what libpq's variables say.

use std::env::var;

pub fn address() -> String {
    format!("127.0.0.1:{}", var("PGPORT").unwrap())
}

pub fn place(text: &str) -> String {
    let text = text.replace("5433", &var("PGPORT").unwrap());
    if !text.contains("user=postgres") || text.contains("password=") {
        return text;
    }
    let password = var("PGPASSWORD").unwrap().replace('\\', "\\\\").replace('\'', "\\'");
    format!("{text} password='{password}'")
}
