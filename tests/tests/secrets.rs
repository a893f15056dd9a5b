//! No copy of a private key is left behind in memory that is given back: not of its file, nor of its text, nor of what
//! that decodes to. Whatever the process frees is looked through.

use std::fs;
use std::process::Command;

use base64ct::{Base64, Encoding};
use testbed::tunnel::server_config;
use testbed::{Pki, Scratch, Sidecar, StandIn, run};

/// Tells in the file LEFT what of SECRETS (hexadecimal, with commas) stands in memory that is freed.
const LOOKS_AT_WHAT_IS_FREED: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned char secrets[4][64];
static size_t lengths[4], count;

__attribute__((constructor)) static void read_secrets(void) {
    for (const char *at = getenv("SECRETS"); at && count < 4; at = strchr(at, ','), at = at ? at + 1 : at) {
        while (sscanf(at + 2 * lengths[count], "%2hhx", &secrets[count][lengths[count]]) == 1) lengths[count]++;
        count++;
    }
}

static void *within(void *freed) {
    for (size_t i = 0; freed && i < count; i++)
        if (memmem(freed, malloc_usable_size(freed), secrets[i], lengths[i])) return secrets[i];
    return NULL;
}

static void tell(void *secret) {
    int file = open(getenv("LEFT"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    char which = '0' + (char)(((unsigned char (*)[64])secret) - secrets);
    if (write(file, &which, 1) == 1) close(file);
}

void free(void *freed) {
    static void (*next)(void *);
    if (!next) next = dlsym(RTLD_NEXT, "free");
    void *secret = within(freed);
    if (secret) tell(secret);
    next(freed);
}

void *realloc(void *before, size_t size) {
    static void *(*next)(void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "realloc");
    void *secret = within(before);
    void *after = next(before, size);
    if (secret && after != before) tell(secret);
    return after;
}
"#;

#[test]
fn no_copy_of_a_private_key_is_left_behind() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("secrets"), StandIn::new());
    let [source, library, left] = ["looks.c", "looks.so", "left"].map(|name| dir.path().join(name));
    fs::write(&source, LOOKS_AT_WHAT_IS_FREED).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]);
    run(compiler.args([&library, &source]).arg("-ldl")).unwrap();
    let primary = pki.issue("primary");
    // What a renewal that was stopped leaves: it is read as well.
    fs::copy(&primary.key, primary.key.with_extension("key.next")).unwrap();

    let pem = fs::read_to_string(&primary.key).unwrap();
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let key = Base64::decode_vec(&text).unwrap();
    // PKCS #8 of a key on P-256 (RFC 5915, 5958): the secret number stands behind the head of its octet string.
    let head = key.windows(2).position(|head| head == [4, 32]).unwrap();
    let number = &key[head + 8..head + 24];
    // A piece of the same as text, in one line of it.
    let first = (head + 8) / 3 * 4;
    let line = if first / 64 == (first + 15) / 64 {
        first
    } else {
        first / 64 * 64 + 64
    };
    let text = &text.as_bytes()[line..line + 16];
    assert!(pem.contains(std::str::from_utf8(text).unwrap()));

    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let secrets = format!("{},{}", hex(number), hex(text));
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("SECRETS", &secrets),
        ("LEFT", left.to_str().unwrap()),
    ];
    let config = server_config(&primary, stand_in.upstream(), "");
    let server = Sidecar::run_with_env("server", &config, &env);
    server.reconfigure(&config);
    // A key that is read in vain, since something else is wrong.
    server.reconfigure(&config.replace("ca.crt", "missing.crt"));
    let found = fs::read_to_string(&left).unwrap_or_default();
    assert!(
        found.is_empty(),
        "freed with the number (0) or its text (1) in it: {found}"
    );
    // What is not kept secret is found: it is looked at all.
    let env = env.map(|(name, value)| match name {
        "SECRETS" => (name, "2d2d2d424547494e2043455254494649434154452d2d2d"),
        _ => (name, value),
    });
    drop(Sidecar::run_with_env("server", &config, &env));
    assert!(left.exists());
}
