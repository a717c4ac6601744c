//! Flags while their file changes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};

use super::*;

/// Flags that follow a file until this is dropped.
struct Followed {
    folder: TempDir,
    file: PathBuf,
    flags: Flags,
    events: UnboundedReceiver<FlagsEvent>,
    reloader: JoinHandle<()>,
}

impl Followed {
    async fn start(text: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("flags.json");
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        Self::on(folder, file).await
    }

    async fn on(folder: TempDir, file: PathBuf) -> Self {
        let (flags, reloader) = Flags::open(&FlagFile::Optional(file.clone())).await.unwrap();
        let (sender, events) = unbounded_channel();
        let reloader = tokio::spawn(async move {
            reloader.run(move |event| drop(sender.send(event.clone()))).await;
        });
        Self { folder, file, flags, events, reloader }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    async fn event(&mut self) -> FlagsEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("the change is not seen").unwrap()
    }

    async fn refusal(&mut self) -> FlagsError {
        match self.event().await {
            FlagsEvent::Refused(error) => error,
            FlagsEvent::InForce => panic!("a broken file is in force"),
        }
    }

    async fn minutes(&self, user_id: &str) -> u64 {
        self.flags.workspace_start_lifetime(user_id).await.as_secs() / 60
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.reloader.abort();
    }
}

#[tokio::test]
async fn the_defaults_are_in_force_until_a_file_appears() {
    let mut followed = Followed::start(None).await;
    assert!(followed.flags.opportunistic_token_refresh("u-1").await);
    assert_eq!(followed.minutes("u-1").await, 10);
    followed.write(&file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("off", &json!({})))]));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert!(!followed.flags.opportunistic_token_refresh("u-1").await);
    assert_eq!(followed.minutes("u-1").await, 10, "a flag that the file does not define has its default");
}

#[tokio::test]
async fn answers_are_cached_until_the_file_changes() {
    let rule = |answer: &str| {
        let listed = json!({"in": [{"var": "targetingKey"}, ["u-1"]]});
        file_of(&[(OPPORTUNISTIC_TOKEN_REFRESH, refresh("on", &json!({"if": [listed, answer]})))])
    };
    let mut followed = Followed::start(Some(&rule("off"))).await;
    for _ in 0..2 {
        assert!(!followed.flags.opportunistic_token_refresh("u-1").await);
        assert!(followed.flags.opportunistic_token_refresh("u-2").await);
    }
    assert_eq!(followed.flags.current().cached_users(), 2);

    followed.write(&rule("on"));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.flags.current().cached_users(), 0);
    assert!(followed.flags.opportunistic_token_refresh("u-1").await);
}

#[tokio::test]
async fn a_broken_file_leaves_the_last_good_flags_in_force() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    followed.write("{\"flags\": {");
    let error = followed.refusal().await.to_string();
    assert!(error.contains("flags.json") && error.contains("line 1, column 11"), "{error}");
    assert_eq!(followed.minutes("u-1").await, 20);

    followed.write(&minutes_file(30).replace("ENABLED", "PERHAPS"));
    let error = followed.refusal().await.to_string();
    assert!(error.contains("flags.workspace_start_scm_access_token_lifetime.state"), "{error}");
    assert_eq!(followed.minutes("u-1").await, 20);

    followed.write(&minutes_file(30));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.minutes("u-1").await, 30);
}

#[tokio::test]
async fn an_error_is_reported_once_and_only_when_it_was_seen_twice() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("flags.json");
    fs::write(&file, minutes_file(20)).unwrap();
    let (flags, mut reloader) = Flags::open(&FlagFile::Required(file.clone())).await.unwrap();
    fs::write(&file, "half of a fi").unwrap();
    assert_eq!(reloader.poll().await, None, "somebody may be writing it");
    fs::write(&file, minutes_file(30)).unwrap();
    assert_eq!(reloader.poll().await, Some(FlagsEvent::InForce));
    fs::write(&file, "broken").unwrap();
    assert_eq!(reloader.poll().await, None);
    assert!(matches!(reloader.poll().await, Some(FlagsEvent::Refused(_))));
    assert_eq!(reloader.poll().await, None);
    assert_eq!(reloader.poll().await, None);
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(30));
}

#[tokio::test]
async fn a_deleted_file_is_reported_once_and_leaves_its_flags_in_force() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    fs::remove_file(&followed.file).unwrap();
    assert_eq!(followed.refusal().await, FlagsError::Missing(followed.file.clone()));
    assert_eq!(followed.minutes("u-1").await, 20);
    followed.write(&minutes_file(20));
    assert_eq!(followed.event().await, FlagsEvent::InForce, "nothing is reported twice");
    assert_eq!(followed.minutes("u-1").await, 20);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Captures what this thread logs until the guards are dropped.
    fn capture() -> (Self, [DefaultGuard; 2]) {
        let log = Self::default();
        let writer = log.clone();
        // With one subscriber alive, the first thread to reach a log line decides for all threads whether the line is
        // enabled. With two, each thread is asked.
        let other = set_default(NoSubscriber::new());
        let this = set_default(tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish());
        (log, [this, other])
    }

    fn lines(&self, level: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["level"] == level).collect()
    }
}

#[tokio::test]
async fn an_error_and_its_end_are_logged_once_each() {
    let (log, _guards) = Log::capture();
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    followed.write("{");
    followed.refusal().await;
    followed.write(&minutes_file(20));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    fs::remove_file(&followed.file).unwrap();
    followed.refusal().await;

    let file = followed.file.display().to_string();
    let [error] = &log.lines("ERROR")[..] else { panic!("{:?}", log.lines("ERROR")) };
    assert_eq!(error["fields"]["file"], file);
    let told = error["fields"]["error"].as_str().unwrap();
    assert!(told.contains(&file) && told.contains("line 1, column 1"), "{told}");
    let [warning] = &log.lines("WARN")[..] else { panic!("{:?}", log.lines("WARN")) };
    assert_eq!(warning["fields"]["file"], file);
    let told: Vec<Value> = log.lines("INFO").iter().map(|line| line["fields"]["message"].clone()).collect();
    assert_eq!(told, ["feature flags are in force", "the flag file is back and unchanged"]);
}

#[tokio::test]
async fn a_changed_symlink_in_the_path_is_a_change() {
    let folder = TempDir::new().unwrap();
    let versions = [("..v1", 1), ("..v2", 2)].map(|(name, minutes)| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("flags.json"), minutes_file(minutes)).unwrap();
        Path::new(name)
    });
    let link_to = |version: &Path| {
        let (next, data) = (folder.path().join("..next"), folder.path().join("..data"));
        std::os::unix::fs::symlink(version, &next).unwrap();
        fs::rename(next, data).unwrap();
    };
    link_to(versions[0]);
    let file = folder.path().join("flags.json");
    std::os::unix::fs::symlink("..data/flags.json", &file).unwrap();
    let (flags, reloader) = Flags::open(&FlagFile::Required(file)).await.unwrap();
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(1));
    link_to(versions[1]);
    let (sender, mut events) = unbounded_channel();
    let follow = reloader.run(move |event| drop(sender.send(event.clone())));
    tokio::select! {
        _ = follow => {}
        event = timeout(PATIENCE, events.recv()) => assert_eq!(event.unwrap(), Some(FlagsEvent::InForce)),
    }
    assert_eq!(flags.workspace_start_lifetime("u-1").await, Duration::from_mins(2));
}

#[tokio::test]
async fn writes_to_other_files_in_the_folder_do_not_stop_reloading() {
    let mut followed = Followed::start(Some(&minutes_file(20))).await;
    for number in 0..1_500 {
        fs::write(followed.folder.path().join("tokenkeeper.db-wal"), number.to_string()).unwrap();
    }
    followed.write(&minutes_file(30));
    assert_eq!(followed.event().await, FlagsEvent::InForce);
    assert_eq!(followed.minutes("u-1").await, 30);
}
