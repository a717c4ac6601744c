# tokenkeeper as an image: built with the Rust toolchain, shipped without it.
# Images are pinned by the digest of their index, which covers every platform: what was looked at is what runs.

FROM rust:1.97.0-slim-bookworm@sha256:6d220bf85c74e842a79da63997af8d2e74455c0b8847d8bb3a5888572334991d AS build
WORKDIR /build
COPY . .
# The caches keep compiled dependencies over builds; what they hold is no part of any layer. Our own crates are
# touched, so that they are compiled each time: cargo goes by dates, and the cache may be younger than a checkout.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    find src entity migration -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin tokenkeeper \
    && install -D target/release/tokenkeeper /out/tokenkeeper

FROM debian:bookworm-slim@sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716
# Token endpoints are https: rustls verifies them by the system's roots.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/tokenkeeper /usr/local/bin/tokenkeeper
# For a pair that was refreshed while neither database nor broker would take it: mount something that lasts.
RUN install -d -o 65532 -g 65532 -m 700 /var/lib/tokenkeeper/spool
ENV TOKENKEEPER__WORKER__SPOOL_DIR=/var/lib/tokenkeeper/spool
VOLUME /var/lib/tokenkeeper/spool
# tokenkeeper.toml and flags.json are looked for in the working folder. Nothing is written there: the database is
# a server, see DATABASE_URL.
WORKDIR /etc/tokenkeeper
USER 65532:65532
EXPOSE 9464
# The worker stops softly at SIGTERM: it finishes what it has in hand.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tokenkeeper"]
CMD ["worker"]
