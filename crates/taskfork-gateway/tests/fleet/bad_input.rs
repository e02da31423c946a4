//! Wrong addresses, names, credentials and limits: a clear error each, which says what to do.

use taskfork::Blob;
use taskfork::Client;
use taskfork::client::{ConfigError, NatsConnectOptions};

use crate::fixture::{Fleet, client_builder, reason};
use crate::support::trial;

fn refused(address: &str) -> String {
    let error = Client::builder().address(address).build().unwrap_err();
    assert!(matches!(error, ConfigError::Address(_)), "{error:?}");
    error.to_string()
}

trial!(a_wrong_address_is_an_error_that_says_what_is_right, async || {
    for (address, why) in [
        ("nats://localhost:4222", "the name of the service is missing"),
        ("nats://localhost:port/work", "a host or a port is wrong"),
        ("nats:///work", "host"),
    ] {
        let text = refused(address);
        assert!(text.contains(why), "{text}");
        assert!(text.contains("write nats://HOST:PORT/SERVICE"), "{text}");
    }
});

trial!(a_name_with_dots_or_blanks_is_an_error_that_says_what_is_right, async || {
    for service in ["work.er", "work er", "work*", "wörk"] {
        let text = refused(&format!("nats://localhost/{service}"));
        assert!(text.contains("letters, digits, '-' and '_'"), "{text}");
    }
});

trial!(refused_credentials_are_an_error_without_the_password, async || {
    let config = "authorization { user: me, password: secret }\n";
    let fleet = Fleet::start_with("served", config);
    let options =
        |password: &str| NatsConnectOptions::with_user_and_password("me".into(), password.into());
    let wrong = fleet.client_builder().nats(options("wrong-word")).build().unwrap();
    for client in [wrong, fleet.client()] {
        let text = reason(&client).await;
        assert!(text.contains("refuses the credentials"), "{text}");
        assert!(text.contains("check user, password, token or credentials file"), "{text}");
        assert!(!text.contains("wrong-word"), "{text}");
    }

    let builder = fleet.node("one", 8).nats(options("secret"));
    let _node = builder.start(&fleet.nats.url()).await.unwrap();
    let right = fleet.client_builder().nats(options("secret")).build().unwrap();
    assert_eq!(right.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let address = fleet.address().replace("nats://", "nats://me:secret@");
    let right = client_builder(&address).build().unwrap();
    assert_eq!(right.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_user_who_may_not_ask_is_an_error_that_names_the_subject, async || {
    let config = "authorization { users: [ { user: me, password: me, \
                  permissions: { publish: { deny: \"work.>\" } } } ] }\n";
    let fleet = Fleet::start_with("served", config);
    let options = NatsConnectOptions::with_user_and_password("me".into(), "me".into());
    // Half of this time is for the answer of a node.
    let limit = std::time::Duration::from_millis(600);
    let builder = fleet.client_builder().nats(options).connect_timeout(limit);
    let text = reason(&builder.build().unwrap()).await;
    assert!(text.contains("may not publish to work.acquire.any"), "{text}");
});

trial!(a_payload_limit_below_1_kib_is_an_error_that_names_the_option, async || {
    let fleet = Fleet::start_with("served", "max_payload: 1000\n");
    let text = reason(&fleet.client()).await;
    assert!(text.contains("messages of at most 1000 bytes, and sessions need 1024"), "{text}");
    assert!(text.contains("raise max_payload"), "{text}");
});

trial!(a_payload_limit_of_1_kib_is_enough, async || {
    let fleet = Fleet::start_with("served", "max_payload: 1024\n");
    let _node = fleet.node("one", 8).start(&fleet.nats.url()).await.unwrap();
    let client = fleet.client();
    let blob = Blob::from(vec![7; 200_000]);
    let echo: Blob = client.call("echo", (&blob,)).await.unwrap();
    assert!(echo == blob, "the bytes have changed");
});

trial!(tls_to_a_server_without_it_is_an_error, async || {
    let fleet = Fleet::start();
    let address = fleet.address().replace("nats://", "nats+tls://");
    let text = reason(&client_builder(&address).build().unwrap()).await;
    assert!(text.contains("TLS") || text.contains("tls"), "{text}");
});

trial!(something_else_at_the_port_is_an_error_that_names_the_address, async || {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let page = b"HTTP/1.0 400 Bad Request\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, page).await;
        }
    });
    let client = client_builder(&format!("nats://127.0.0.1:{port}/work")).build().unwrap();
    let text = reason(&client).await;
    assert!(text.contains(&format!("nats://127.0.0.1:{port}")), "{text}");
    assert!(text.contains("correct the address"), "{text}");
    server.abort();
});

trial!(options_of_nats_need_an_address_of_nats, async || {
    let error = Client::builder()
        .address("unix:/run/adder.sock")
        .nats(NatsConnectOptions::new())
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("no address nats://HOST:PORT/SERVICE"), "{error}");
});
