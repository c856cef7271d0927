# One gate for people and CI: `just check`.

# What has to pass before a commit.
check: fmt clippy test

fmt:
    cargo fmt --check

clippy:
    cargo clippy --all-targets -- -D warnings

test:
    cargo test

# Writes the pages that are generated from the code.
docs:
    LARDER_UPDATE_DOCS=1 cargo test --lib docs

# The server on its defaults.
run:
    cargo run --release -- config/larder.toml

# Larder against redis-server and memcached.
peers *args:
    cargo bench --bench peers -- {{args}}

# Fuzzes the request scanner; needs cargo-fuzz.
fuzz:
    cargo fuzz run -s none request

# Takes the pictures of the page; needs chromium.
pictures:
    LARDER_UPDATE_DOCS=1 cargo test --test page figures
