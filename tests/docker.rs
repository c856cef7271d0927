//! The files of `docker/`, as far as a machine without a container engine can check them: they are read
//! strictly, what they name is there, and the image's steps run as far as they go without an engine, its entry
//! point as process 1 in a root directory of its own. docs/docker.md says what isn't checked.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{Server, http, missing, signal};
use larder::config::Config;
use serde::Deserialize;
use serde_json::Value;

const DOCKERFILE: &str = include_str!("../docker/Dockerfile");
const LARDER: &str = env!("CARGO_BIN_EXE_larder");

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The instructions of the Dockerfile by stage, each a word and what stands behind it.
fn stages() -> Vec<Vec<(String, String)>> {
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    let lines = DOCKERFILE.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (word, rest) = line.split_once(' ').expect("a word and more");
        if word == "FROM" {
            stages.push(Vec::new());
        }
        let stage = stages.last_mut().expect("FROM comes first");
        stage.push((word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    stages
}

/// What the one instruction of this name in the image's own stage says.
fn final_one(word: &str) -> String {
    let stages = stages();
    let last = stages.last().expect("a stage");
    let found: Vec<_> = last.iter().filter(|(name, _)| name == word).collect();
    assert_eq!(found.len(), 1, "{word}");
    found[0].1.clone()
}

/// The words of an instruction in its exec form.
fn exec_form(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{text}: {why}"))
}

/// Whether .dockerignore lets a path through to the build. Only the shapes that it has are understood.
fn is_sent(path: &Path) -> bool {
    let mut sent = true;
    for line in read(".dockerignore").lines().filter(|line| !line.starts_with('#')) {
        let (pattern, lets) = line.strip_prefix('!').map_or((line, false), |rest| (rest, true));
        assert!(pattern == "*" || !pattern.contains(['*', '?', '[']), "{pattern}");
        if pattern == "*" || path.starts_with(pattern) {
            sent = lets;
        }
    }
    sent
}

/// Copies what the build would be sent.
fn send_to(dir: &Path) {
    let mut left = vec![PathBuf::new()];
    while let Some(inside) = left.pop() {
        for entry in fs::read_dir(top().join(&inside)).expect("a directory") {
            let entry = entry.expect("readable");
            let path = inside.join(entry.file_name());
            let is_dir = entry.file_type().expect("a type").is_dir();
            // A directory may be let through in part.
            if is_dir && (is_sent(&path) || path == Path::new("docker")) {
                left.push(path);
            } else if !is_dir && is_sent(&path) {
                let to = dir.join(&path);
                fs::create_dir_all(to.parent().expect("a directory")).expect("made");
                fs::copy(top().join(&path), to).expect("copied");
            }
        }
    }
}

#[test]
fn the_dockerfile_says_what_it_should() {
    let known = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
    ];
    let stages = stages();
    let mut names = Vec::new();
    for (word, rest) in stages.iter().flatten() {
        assert!(known.contains(&&**word), "{word}");
        let words: Vec<&str> = rest.split(' ').collect();
        match (&**word, &words[..]) {
            ("FROM", [image, more @ ..]) => {
                let tag = image.split_once(':').expect("a version").1;
                assert!(tag.contains("bookworm"), "{image}: one libc for both stages");
                names.extend(more.get(1).copied());
            }
            ("COPY", [source, _]) => {
                let is_there = *source == "." || top().join(source).exists();
                assert!(is_there && (*source == "." || is_sent(Path::new(source))), "{source}");
            }
            ("COPY", [from, _, _]) => {
                let stage = from.strip_prefix("--from=").expect("a stage");
                assert!(names.contains(&stage), "{stage}");
            }
            ("COPY", _) => panic!("{rest}"),
            _ => {}
        }
    }
    let minimum = read("Cargo.toml");
    let minimum = minimum.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let builder = format!("rust:{}-bookworm", minimum.expect("a version").trim_matches('"'));
    assert_eq!(stages[0][0].1, format!("{builder} AS build"));
    let user = final_one("USER");
    let (user, group) = user.split_once(':').expect("user and group");
    assert!(
        user.parse::<u32>().expect("a number") > 0 && group.parse::<u32>().expect("a number") > 0
    );
    let made = final_one("RUN");
    assert!(
        made.contains(&format!("--uid {user} ")) && made.contains(&format!("--gid {group} ")),
        "{made}"
    );
    assert_eq!(final_one("EXPOSE"), "6379");
    let health = final_one("HEALTHCHECK");
    let check = exec_form(health.split_once("CMD ").expect("a command").1);
    assert_eq!(check[..2], ["larder", "health"]);
    let entry = exec_form(&final_one("ENTRYPOINT"));
    let copied = format!("docker/larder.toml {}", entry[1]);
    assert!(stages.last().expect("a stage").contains(&("COPY".to_owned(), copied)));
}

#[test]
fn a_linter_has_nothing_to_say_about_the_dockerfile() {
    let program = std::env::var("LARDER_HADOLINT").unwrap_or_else(|_| "hadolint".to_owned());
    match Command::new(program).arg(top().join("docker/Dockerfile")).output() {
        Ok(output) => assert_eq!(said(&output), ""),
        Err(_) => missing("hadolint"),
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn the_build_is_sent_all_that_cargo_needs_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    send_to(dir.path());
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version=1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(dir.path())
        .output()
        .expect("cargo runs");
    assert!(cargo.status.success(), "{}", said(&cargo));
    for other in [".git", "target", "docs", "data", "docker/compose.yaml"] {
        assert!(!dir.path().join(other).exists(), "{other}");
    }
    // What the source includes from elsewhere.
    let mut left = vec![dir.path().join("src")];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(
                fs::read_dir(path).expect("there").map(|entry| entry.expect("readable").path()),
            );
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (_, behind) in code.match_indices("include_").map(|(at, _)| code.split_at(at)) {
            let name = behind.split_once("!(\"").and_then(|(_, rest)| rest.split_once('"'));
            let Some((name, _)) = name else { continue };
            let wanted = path.parent().expect("a directory").join(name);
            assert!(wanted.exists(), "{} includes {name}", path.display());
        }
    }
}

/// Where the system has the libraries that the binary links to.
fn libraries() -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(LARDER).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

#[test]
fn the_binary_links_to_what_a_slim_debian_has() {
    // Of libc6 and libgcc-s1, which apt needs itself.
    let there = [
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
    ];
    let libraries = libraries();
    assert!(libraries.len() >= 2, "{libraries:?}");
    for library in libraries {
        let name = library.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(there.contains(&&*name), "{name}");
    }
}

/// An address of this machine that isn't the loopback interface's.
fn outside() -> Option<String> {
    let output = Command::new("hostname").arg("-I").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find(|word| word.contains('.')).map(str::to_owned)
}

/// `docker run -p 6379:6379`: whoever comes comes from outside.
#[test]
fn the_images_configuration_serves_clients_from_outside() {
    let Some(address) = outside() else { return eprintln!("skipped: only the loopback interface") };
    let dir = tempfile::tempdir().expect("a directory");
    let config = top().join("docker/larder.toml");
    let args = [config.to_str().expect("a plain path"), "--admin", "0.0.0.0:0"];
    let server = Server::start_in(dir.path(), &args);
    let client = redis::Client::open(format!("redis://{address}:{}/", server.port()));
    let mut client = client.expect("an address").get_connection().expect("served");
    assert_eq!(redis::cmd("PING").query::<String>(&mut client).expect("an answer"), "PONG");
    let port = server.admin().rsplit_once(':').expect("a port").1;
    let scraped = http::ask(
        &format!("{address}:{port}"),
        "GET /metrics HTTP/1.1\r\nHost: larder:9379\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(scraped.status, 200);
}

/// A root directory as the image's last stage leaves it, but for Debian's own programs.
fn root_of_the_image(root: &Path) {
    let put = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a directory")).expect("made");
        fs::copy(from, to).expect("copied");
    };
    for library in libraries() {
        put(&library, library.to_str().expect("a plain path"));
    }
    put(Path::new(LARDER), "/usr/local/bin/larder");
    let entry = exec_form(&final_one("ENTRYPOINT"));
    put(&top().join("docker/larder.toml"), &entry[1]);
    let (user, group) = ids();
    let data = root.join(final_one("VOLUME").trim_start_matches('/'));
    for dir in [root.join("proc"), root.join("dev"), data.clone()] {
        fs::create_dir(dir).expect("made");
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).expect("ours");
    chown(&data, Some(user), Some(group)).expect("we are root");
}

fn ids() -> (u32, u32) {
    let user = final_one("USER");
    let (user, group) = user.split_once(':').expect("user and group");
    (user.parse().expect("a number"), group.parse().expect("a number"))
}

/// Process 1 of a namespace of its own, by the number that it has outside; killed when dropped.
struct Inner(u32);

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-KILL", &self.0.to_string()])
            .stderr(Stdio::null())
            .status();
    }
}

/// Runs the entry point in a root directory, as process 1 and as the image's user; only its ports are others.
fn run_in(root: &Path) -> (Server, Inner) {
    let (user, group) = ids();
    let entry = exec_form(&final_one("ENTRYPOINT"));
    // The helper hands over the path of the binary outside, and the flags.
    let script = format!(
        "shift; exec unshare --pid --fork --mount --root={} --mount-proc=/proc --wd={} \
         --setuid={user} --setgid={group} {} \"$@\"",
        root.display(),
        final_one("WORKDIR"),
        entry.join(" "),
    );
    let data = final_one("VOLUME");
    let flags = ["--admin", "127.0.0.1:0"];
    let server = Server::start_through("sh", &["-c", &script, "sh"], Path::new(&data), &flags);
    let children = format!("/proc/{0}/task/{0}/children", server.pid());
    let inner = fs::read_to_string(children).expect("Linux").trim().parse().expect("one child");
    (server, Inner(inner))
}

/// `docker exec` of the image's health check, with the address that the admin has here.
fn health_check(inner: &Inner, admin: &str) -> Output {
    let health = final_one("HEALTHCHECK");
    let check = exec_form(health.split_once("CMD ").expect("a command").1);
    let (user, group) = ids();
    Command::new("nsenter")
        .args([
            format!("--target={}", inner.0),
            format!("--setuid={user}"),
            format!("--setgid={group}"),
        ])
        .args(["--pid", "--mount", "--root", "--wd"])
        .args(check.iter().map(|word| word.replace("127.0.0.1:9379", admin)))
        .output()
        .expect("nsenter runs")
}

/// The image's entry point in its root directory: with its health check, its data over a restart, and an end
/// at SIGTERM for which the engine doesn't have to kill it.
#[test]
fn the_entry_point_runs_as_process_1_without_rights() {
    let can = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--mount-proc", "--setuid=65534", "true"])
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: needs root, and namespaces");
    }
    let dir = tempfile::tempdir().expect("a directory");
    root_of_the_image(dir.path());
    for run in 0..3 {
        let (mut server, inner) = run_in(dir.path());
        let status = fs::read_to_string(format!("/proc/{}/status", inner.0)).expect("it runs");
        let line =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        assert!(line("NSpid:").ends_with("\t1"), "{status}");
        assert!(line("Uid:").split_whitespace().all(|id| id == ids().0.to_string()), "{status}");
        let mut client = server.raw();
        let expected = if run == 0 { "$-1\r\n" } else { "$5\r\nthere\r\n" };
        assert_eq!(client.ask_line("GET key"), expected);
        assert_eq!(client.ask_line("SET key there"), "+OK\r\n");
        let check = health_check(&inner, server.admin());
        assert!(check.status.success() && said(&check) == "ok\n", "{}", said(&check));
        let nobody = health_check(&inner, "127.0.0.1:1");
        assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
        signal(inner.0, "TERM");
        assert_eq!(server.wait(), Some(0));
    }
}

/// The parts of docker/compose.yaml that are used; anything else is a mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    name: String,
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some are only there to be known")]
struct Service {
    build: Option<Build>,
    image: String,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    healthcheck: HealthCheck,
    stop_grace_period: Option<String>,
    mem_limit: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    security_opt: Vec<String>,
    restart: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    context: String,
    dockerfile: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some are only there to be known")]
struct HealthCheck {
    test: Vec<String>,
    interval: String,
    timeout: String,
    retries: u32,
    start_period: String,
}

fn yaml<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

#[test]
fn compose_names_what_is_there() {
    let compose: Compose = yaml("docker/compose.yaml");
    assert_eq!(compose.name, "larder");
    let names: Vec<&str> = compose.services.keys().map(String::as_str).collect();
    assert_eq!(names, ["grafana", "larder", "postgres", "prometheus"]);
    for (name, service) in &compose.services {
        let (_, tag) = service.image.split_once(':').expect("a version");
        assert!(
            tag.trim_start_matches('v')
                .split(['.', '-'])
                .take(2)
                .all(|part| part.parse::<u32>().is_ok()),
            "{tag}"
        );
        for port in &service.ports {
            assert!(port.starts_with("127.0.0.1:") && !port.ends_with(":9379"), "{name}: {port}");
        }
        for volume in &service.volumes {
            let source = volume.split(':').next().expect("a source");
            match source.strip_prefix("./") {
                Some(path) => {
                    assert!(top().join("docker").join(path).exists(), "{name}: {source}");
                    assert!(volume.ends_with(":ro"), "{name}: {volume}");
                }
                None => assert!(compose.volumes.contains_key(source), "{name}: {source}"),
            }
        }
        for (other, Dependency { condition }) in &service.depends_on {
            assert!(compose.services.contains_key(other), "{name}: {other}");
            assert!(["service_healthy", "service_started"].contains(&&**condition), "{condition}");
        }
        assert_eq!(service.healthcheck.test[0], "CMD", "{name}");
        assert_eq!(service.restart, "unless-stopped", "{name}");
        // Every variable has a default.
        for value in service.environment.values().filter(|value| value.contains('$')) {
            assert!(value.starts_with("${") && value.contains(":-"), "{name}: {value}");
        }
    }
}

/// A configuration, whose password the environment of a test doesn't have.
fn without_password(text: &str) -> Config {
    let text = text.replace("password-env = \"POSTGRES_PASSWORD\"\n", "");
    Config::from_toml(&text, "docker").unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn larder_in_the_stack_fits_the_others() {
    let compose: Compose = yaml("docker/compose.yaml");
    let larder = &compose.services["larder"];
    let build = larder.build.as_ref().expect("built here");
    let context = top().join("docker").join(&build.context);
    assert!(context.join(&build.dockerfile).is_file() && context.join(".dockerignore").is_file());
    let entry = exec_form(&final_one("ENTRYPOINT"));
    assert!(larder.volumes.contains(&format!("./stack.toml:{}:ro", entry[1])));
    let data = final_one("VOLUME");
    assert!(larder.volumes.contains(&format!("larder-data:{data}")));
    assert!(larder.read_only && larder.cap_drop == ["ALL"]);
    assert_eq!(larder.healthcheck.test[1..], ["larder", "health"]);

    let stack = read("docker/stack.toml");
    let config = without_password(&stack);
    let settings = &config.settings;
    assert_eq!(settings.dir, Path::new(&data));
    // Compose waits for longer than an end may take.
    let wait = larder.stop_grace_period.as_deref().and_then(|time| time.strip_suffix('s'));
    let wait: u64 = wait.expect("seconds").parse().expect("a number");
    let end = settings.shutdown_timeout + settings.journal_drain + settings.warm_timeout;
    assert!(wait > end.as_secs(), "{end:?}");
    // Postgres has the user, the password and the database that Larder comes with.
    let postgres = &compose.services["postgres"].environment;
    let url = format!(
        "postgres://{}@postgres:5432/{}",
        postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]
    );
    assert!(stack.contains(&url), "{url}");
    assert!(stack.contains("password-env = \"POSTGRES_PASSWORD\""));
    assert_eq!(postgres["POSTGRES_PASSWORD"], larder.environment["POSTGRES_PASSWORD"]);
    assert_eq!(larder.depends_on["postgres"].condition, "service_healthy");

    for path in ["docker/larder.toml", "docker/stack.toml"] {
        let text = read(path);
        let config = without_password(&text);
        assert!(!config.settings.protected_mode, "{path}");
        // Where prometheus.yml looks for it.
        assert!(text.contains("admin = \"0.0.0.0:9379\""), "{path}");
    }
}

#[test]
fn what_watches_finds_what_it_watches() {
    let compose: Compose = yaml("docker/compose.yaml");
    let prometheus: Value = yaml("docker/prometheus/prometheus.yml");
    assert_eq!(prometheus["scrape_configs"][0]["job_name"], "larder");
    assert_eq!(prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0], "larder:9379");
    for file in prometheus["rule_files"].as_array().expect("rules") {
        let volume =
            format!("./prometheus/{0}:/etc/prometheus/{0}:ro", file.as_str().expect("a path"));
        assert!(compose.services["prometheus"].volumes.contains(&volume), "{volume}");
    }
    let sources: Value = yaml("docker/grafana/provisioning/datasources/prometheus.yml");
    let source = &sources["datasources"][0];
    assert_eq!(
        (&source["type"], &source["url"]),
        (&"prometheus".into(), &"http://prometheus:9090".into())
    );
    assert_eq!(source["jsonData"]["timeInterval"], prometheus["global"]["scrape_interval"]);
    let provided: Value = yaml("docker/grafana/provisioning/dashboards/larder.yml");
    let path = provided["providers"][0]["options"]["path"].as_str().expect("a path");
    let dashboard = format!("./grafana/larder.json:{path}/larder.json:ro");
    let grafana = &compose.services["grafana"];
    assert!(grafana.volumes.contains(&dashboard), "{dashboard}");
    let home = &grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert_eq!(*home, format!("{path}/larder.json"));
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let rules: Value = yaml("docker/prometheus/rules.yml");
    let tests: Value = yaml("docker/prometheus/rules_test.yml");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let cases: Vec<Value> =
        list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"])).collect();
    let rules: Vec<Value> =
        list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"])).collect();
    assert!(rules.len() >= 12);
    for rule in rules {
        let name = rule["alert"].as_str().expect("a name");
        let severity = rule["labels"]["severity"].as_str().expect(name);
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        for text in ["summary", "description"] {
            let text = rule["annotations"][text].as_str().expect(name);
            assert!(text.len() > 20, "{name}: {text}");
        }
        let of = cases.iter().filter(|case| case["alertname"] == name);
        let fires: Vec<bool> = of.map(|case| !list(&case["exp_alerts"]).is_empty()).collect();
        assert!(fires.contains(&true) && fires.contains(&false), "{name}: {fires:?}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&read("docker/grafana/larder.json")).expect("JSON");
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let variables: Vec<&str> = variables.map(|one| one["name"].as_str().expect("a name")).collect();
    assert_eq!(variables, ["datasource", "instance", "namespace"]);
    let panels = dashboard["panels"].as_array().expect("panels");
    let inside = panels.iter().flat_map(|row| row["panels"].as_array().into_iter().flatten());
    let mut ids = Vec::new();
    for panel in panels.iter().chain(inside) {
        let title = panel["title"].as_str().expect("a title");
        ids.push(panel["id"].as_u64().expect("an id"));
        let grid = ["x", "w"].map(|side| panel["gridPos"][side].as_u64().expect(title));
        assert!(grid[0] + grid[1] <= 24, "{title}");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for wanted in [&panel["description"], &panel["fieldConfig"]["defaults"]["unit"]] {
            assert!(wanted.as_str().is_some_and(|text| !text.is_empty()), "{title}");
        }
        for target in panel["targets"].as_array().expect(title) {
            let query = target["expr"].as_str().expect(title);
            assert!(query.contains("instance=~\"$instance\""), "{title}: {query}");
        }
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

/// The unit of docs/operations.md, with this larder in the place of its own.
#[test]
fn systemd_accepts_the_unit() {
    let page = read("docs/operations.md");
    let (_, unit) = page.split_once("```ini\n").expect("a unit");
    let unit = unit.split_once("```").expect("it ends").0;
    assert!(unit.contains("ExecStart=/usr/local/bin/larder "), "{unit}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("larder.service");
    fs::write(&path, unit.replace("/usr/local/bin/larder", LARDER)).expect("a file");
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else {
        return eprintln!("skipped: systemd-analyze is not installed");
    };
    assert!(verified.status.success() && said(&verified).is_empty(), "{}", said(&verified));
    // How exposed it is, of 100; a unit that says nothing has 96.
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
        .arg(&path)
        .output()
        .expect("it runs");
    assert!(security.status.success(), "{}", said(&security));
}
