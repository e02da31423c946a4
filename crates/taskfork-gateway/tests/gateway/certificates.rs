//! Who is believed to be whom: certificates of gateways and of clients, and new ones while the gateway runs.

use std::io::Read;
use std::os::unix::net::UnixListener;

use taskfork::Client;

use crate::program::call_with_system_authorities;
use crate::support::{
    Authority, Identity, Running, Served, Validity, address_in, builder, client_builder, reason,
    replace, trial,
};

/// A gateway without a server, whose certificate is this one.
async fn gateway(identity: &Identity) -> Running {
    Running::start(builder("unix:/nowhere/s", identity)).await
}

trial!(a_certificate_that_is_not_valid_now_is_an_error, async || {
    let authority = Authority::new();
    for (validity, text) in
        [(Validity::Past, "has expired: renew it"), (Validity::Future, "is not valid yet")]
    {
        let gateway = gateway(&authority.issue_for(&["localhost"], validity)).await;
        let client = client_builder(gateway.address, &authority).build().unwrap();
        let reason = reason(&client).await;
        assert!(reason.contains(text), "{reason}");
    }
});

trial!(a_certificate_for_another_name_is_an_error, async || {
    let authority = Authority::new();
    let gateway = gateway(&authority.issue(&["other.example"])).await;
    let client = || client_builder(gateway.address, &authority);
    let text = reason(&client().build().unwrap()).await;
    assert!(text.contains("not for `localhost`") && text.contains("other.example"), "{text}");
    assert!(text.contains("tls_name"), "{text}");
    let text = reason(&client().tls_name("other.example").build().unwrap()).await;
    assert!(text.contains("cannot reach its server"), "{text}");
});

trial!(a_certificate_of_an_unknown_issuer_is_an_error, async || {
    let (authority, other) = (Authority::new(), Authority::new());
    let gateway = gateway(&authority.issue(&["localhost"])).await;
    let text = reason(&client_builder(gateway.address, &other).build().unwrap()).await;
    assert!(text.contains("unknown issuer") && text.contains("tls_ca"), "{text}");
});

trial!(the_systems_authorities_are_trusted_by_default, async || {
    let authority = Authority::new();
    let gateway = gateway(&authority.issue(&["localhost"])).await;
    let address = format!("tls:localhost:{}", gateway.address.port());
    let text = match Client::builder().address(address).min_workers(0).build() {
        Ok(client) => reason(&client).await,
        Err(error) => error.to_string(),
    };
    let expected = ["unknown issuer", "no trusted authorities"];
    assert!(expected.iter().any(|part| text.contains(part)), "{text}");
});

trial!(the_systems_authorities_are_read_where_the_system_says, async || {
    let served = Served::start().await;
    let address = format!("tls:localhost:{}", served.gateway.address.port());
    let other = Authority::new();
    let files = [served.authority.file.clone(), other.file.clone()];
    let calls = files.map(|file| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || call_with_system_authorities(&address, &file))
    });
    let [trusted, unknown] = calls;
    assert_eq!(trusted.await.unwrap(), "3\n");
    let unknown = unknown.await.unwrap();
    assert!(unknown.contains("unknown issuer"), "{unknown}");
});

trial!(a_client_has_to_prove_who_it_is, async || {
    let served = Served::start_with(|gateway, authority| gateway.client_ca(&authority.file)).await;
    let text = reason(&served.client()).await;
    assert!(text.contains("wants a certificate") && text.contains("tls_identity"), "{text}");

    let with = |identity: &Identity| {
        let client = served.client_builder();
        client.tls_identity(&identity.certificate, &identity.key).build().unwrap()
    };
    let client = with(&served.authority.issue(&["client.example"]));
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let client = with(&Authority::new().issue(&["client.example"]));
    let text = reason(&client).await;
    assert!(text.contains("its issuer is unknown there"), "{text}");
    for validity in [Validity::Past, Validity::Future] {
        let client = with(&served.authority.issue_for(&["client.example"], validity));
        let text = reason(&client).await;
        assert!(text.contains("has expired or is not valid yet"), "{text}");
    }
});

trial!(only_clients_with_an_allowed_name_are_served, async || {
    let served = Served::start_with(|gateway, authority| {
        let gateway = gateway.client_ca(&authority.file);
        gateway.allow_name("web.example").allow_name("spiffe://example/batch")
    })
    .await;
    let with = |names: &[&str]| {
        let identity = served.authority.issue(names);
        let client = served.client_builder();
        client.tls_identity(&identity.certificate, &identity.key).build().unwrap()
    };
    for names in [&["web.example"][..], &["a.example", "spiffe://example/batch"]] {
        // The client shows its certificate for each connection.
        let client = with(names);
        let mut held = Vec::new();
        for _ in 0..4 {
            let checkout = client.checkout();
            assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3, "{names:?}");
            held.push(checkout);
        }
    }
    for names in [&["evil.web.example"][..], &["spiffe://example/batch2"], &[]] {
        let text = reason(&with(names)).await;
        assert!(text.contains("no name of your certificate is allowed"), "{text}");
    }
});

trial!(the_server_learns_who_the_client_is, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let gateway = builder(&address_in(&folder), &identity).client_ca(&authority.file);
    let gateway = Running::start(gateway).await;
    let client = authority.issue(&["web.example", "spiffe://example/web"]);
    let client = client_builder(gateway.address, &authority)
        .tls_identity(&client.certificate, &client.key)
        .min_workers(1)
        .build()
        .unwrap();
    let accept = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = [0; 12];
        stream.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes(header[8..].try_into().unwrap());
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).unwrap();
        body
    };
    let body = tokio::task::spawn_blocking(accept).await.unwrap();
    let has = |part: &str| body.windows(part.len()).any(|window| window == part.as_bytes());
    for part in ["peer", "names", "web.example", "spiffe://example/web", "127.0.0.1:"] {
        assert!(has(part), "{part}");
    }
    assert!(!has("files") && !has("lent"));
    drop(client);
});

trial!(new_certificates_are_for_new_connections, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _server = taskfork::Server::spawn_with("served", &address).unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let identity = old.issue(&["localhost"]);
    let gateway = Running::start(builder(&address, &identity)).await;
    let client = |authority| client_builder(gateway.address, authority).build().unwrap();
    let checkout = client(&old).checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();

    replace(&identity, &new.issue(&["localhost"]));
    gateway.reloader.reload().unwrap();
    assert_eq!(client(&new).call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let text = reason(&client(&old)).await;
    assert!(text.contains("unknown issuer"), "{text}");
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);

    // What cannot be used changes nothing.
    std::fs::write(&identity.key, "no key").unwrap();
    let error = gateway.reloader.reload().unwrap_err().to_string();
    assert!(error.contains("no private key"), "{error}");
    assert_eq!(client(&new).call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(new_files_are_noticed, async || {
    let (old, new) = (Authority::new(), Authority::new());
    let identity = old.issue(&["localhost"]);
    let gateway = gateway(&identity).await;
    replace(&identity, &new.issue(&["localhost"]));
    let client = client_builder(gateway.address, &new).min_workers(1).build().unwrap();
    let mut text = String::new();
    while !text.contains("cannot reach its server") {
        text = reason(&client).await;
        assert!(text.contains("unknown issuer") || text.contains("cannot reach"), "{text}");
    }
    assert!(!gateway.task.is_finished());
});
