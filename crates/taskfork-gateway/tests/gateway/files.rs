//! Wrong options, and files that cannot be used.

use taskfork::Client;
use taskfork_gateway::{Gateway, GatewayError};

use crate::support::{Authority, builder, trial};

async fn error_of(builder: taskfork_gateway::GatewayBuilder) -> String {
    builder.bind().await.unwrap_err().to_string()
}

trial!(wrong_options_of_a_gateway_are_named, async || {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let good = || builder("unix:/run/s", &identity);
    assert!(matches!(Gateway::builder().bind().await, Err(GatewayError::NoServer)));
    let error = error_of(Gateway::builder().server("tcp:127.0.0.1:1")).await;
    assert!(error.contains("no unix socket"), "{error}");
    assert!(error_of(Gateway::builder().server("/run/s")).await.contains("unix:PATH"));
    assert!(error_of(good().allow_name("a.example")).await.contains("client_ca"));
    assert!(error_of(good().max_handshakes(0)).await.contains("max_handshakes"));
    assert!(error_of(good().max_connections(0)).await.contains("max_connections"));
    let none = error_of(good().max_client_connections(0)).await;
    assert!(none.contains("max_client_connections"), "{none}");
    assert!(
        error_of(good().handshake_timeout(Default::default())).await.contains("handshake_timeout")
    );

    let taken = good().bind().await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let again = good().tls(&address, &identity.certificate, &identity.key);
    let error = error_of(again).await;
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
});

trial!(files_that_cannot_be_used_are_named, async || {
    let authority = Authority::new();
    let (identity, other) = (authority.issue(&["localhost"]), authority.issue(&["localhost"]));
    let with = |certificate: &std::path::Path, key: &std::path::Path| {
        Gateway::builder().server("unix:/run/s").tls("127.0.0.1:0", certificate, key)
    };
    let missing = std::path::Path::new("/nowhere/cert.pem");
    let error = error_of(with(missing, &identity.key)).await;
    assert!(error.contains("/nowhere/cert.pem") && error.contains("No such file"), "{error}");
    let error = error_of(with(&identity.certificate, missing)).await;
    assert!(error.contains("private key") && error.contains("No such file"), "{error}");
    let error = error_of(with(&identity.key, &identity.key)).await;
    assert!(error.contains("no certificate in PEM"), "{error}");
    let error = error_of(with(&identity.certificate, &identity.certificate)).await;
    assert!(error.contains("no private key"), "{error}");
    let error = error_of(with(&identity.certificate, &other.key)).await;
    assert!(error.contains("not the key of the certificate in"), "{error}");
    let error = error_of(builder("unix:/run/s", &identity).client_ca(missing)).await;
    assert!(error.contains("authorities of clients"), "{error}");
});

trial!(wrong_options_of_a_client_are_named, async || {
    let authority = Authority::new();
    let (identity, other) = (authority.issue(&["a.example"]), authority.issue(&["a.example"]));
    let client = || Client::builder().address("tls:localhost:1").tls_ca(&authority.file);
    let error = |client: taskfork::client::ClientBuilder| client.build().unwrap_err().to_string();
    let text = error(client().tls_ca("/nowhere/ca.pem"));
    assert!(text.contains("`tls_ca`") && text.contains("/nowhere/ca.pem"), "{text}");
    assert!(text.contains("No such file"), "{text}");
    let text = error(client().tls_ca(&identity.key));
    assert!(text.contains("no certificate in PEM"), "{text}");
    let text = error(client().tls_identity(&identity.certificate, &other.key));
    assert!(text.contains("not the key of the certificate in"), "{text}");
    let text = error(client().tls_name("not a name"));
    assert!(text.contains("`tls_name`"), "{text}");
    let text = error(client().address("tcp:localhost:1"));
    assert!(text.contains("nothing would be encrypted"), "{text}");
    assert!(error(client().address("tls:localhost")).contains("tls:HOST:PORT"));
});
