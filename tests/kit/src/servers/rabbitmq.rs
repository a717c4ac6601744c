//! RabbitMQ nodes of their own, with an Erlang port mapper of their own: one alone, or some as a cluster.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use lapin::{Connection, ConnectionProperties};
use tokio::{process::Command, time::timeout};

use super::{
    ServerTls,
    daemon::{Daemon, Owner, find_program, run},
    free_port,
};

const NAME: &str = "RabbitMQ";
const NODE: &str = "chaos@localhost";

/// What nodes of one cluster prove to each other that they belong together.
const COOKIE: &str = "NODESOFONETESTALONE";

/// Without interfaces of the machine. Of a cluster's nodes each takes one thread, since they share the machine.
const ALONE: &str = "-kernel inet_dist_use_interface {127,0,0,1}";
const ONE_OF_MANY: &str = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none";

/// A node boots in some seconds, on a machine under load in many.
const BOOT: Duration = Duration::from_secs(180);

/// A node of its own that can be stopped, started, cut and starved.
pub struct RabbitMq {
    owner: Owner,
    server: PathBuf,
    control: PathBuf,
    folder: PathBuf,
    ports: Ports,
    daemon: Option<Daemon>,
    node: String,
    erlang: &'static str,
    /// Ends last.
    _port_mapper: Arc<Daemon>,
}

/// Nodes of one cluster. Each may be killed, frozen and started again.
pub struct Cluster {
    /// Each with a port of its own.
    pub nodes: Vec<RabbitMq>,
}

impl Cluster {
    /// Starts so many nodes, with everything they write below `folder`. `more` are lines of rabbitmq.conf for each.
    pub async fn start(folder: &Path, count: usize, more: &str) -> Result<Self> {
        let mapper = free_port()?;
        let port_mapper = Arc::new(RabbitMq::map_ports(folder, mapper).await?);
        let mut nodes: Vec<RabbitMq> = Vec::new();
        for number in 1..=count {
            let mapper = (mapper, Arc::clone(&port_mapper));
            let name = format!("chaos-{number}");
            let mut node = RabbitMq::prepare(folder, &name, mapper, None, more).await?;
            node.erlang = ONE_OF_MANY;
            node.begin().await?;
            if let Some(first) = nodes.first() {
                node.ctl(&["stop_app"]).await?;
                node.ctl(&["join_cluster", &first.node]).await?;
                node.ctl(&["start_app"]).await?;
            }
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    /// One URL with the hosts of all nodes.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.amqp)).collect();
        format!("amqp://guest:guest@{}/%2f", hosts.join(","))
    }
}

/// What an account may do, each a regular expression over the names of exchanges and queues.
pub struct Permissions {
    /// Declare and delete.
    pub configure: String,
    /// Publish.
    pub write: String,
    /// Consume.
    pub read: String,
}

#[derive(Clone, Copy)]
struct Ports {
    amqp: u16,
    /// Nobody listens there without TLS.
    amqps: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitMq {
    /// Starts one with everything it writes below `folder`. With TLS, its port for that wants a client certificate, and takes
    /// the name in it as a login (EXTERNAL).
    pub async fn start(folder: &Path, tls: Option<&ServerTls<'_>>) -> Result<Self> {
        let mapper = free_port()?;
        let port_mapper = Arc::new(Self::map_ports(folder, mapper).await?);
        let mut broker = Self::prepare(folder, "rabbitmq", (mapper, port_mapper), tls, "").await?;
        NODE.clone_into(&mut broker.node);
        broker.begin().await?;
        Ok(broker)
    }

    /// Starts an Erlang port mapper.
    async fn map_ports(folder: &Path, port: u16) -> Result<Daemon> {
        let owner = Owner::find("rabbitmq").await?;
        let folder = folder.join("epmd");
        owner.make_folder(&folder)?;
        let mut epmd = owner.command(&find_program("epmd", erlang_folders())?, &folder);
        epmd.args(["-address", "127.0.0.1", "-port", &port.to_string()]);
        Daemon::spawn("the Erlang port mapper", "TERM", &mut epmd, &folder.join("epmd.log"))
    }

    /// Writes what a node needs. `more` are lines of rabbitmq.conf.
    async fn prepare(
        folder: &Path,
        name: &str,
        (mapper, port_mapper): (u16, Arc<Daemon>),
        tls: Option<&ServerTls<'_>>,
        more: &str,
    ) -> Result<Self> {
        let owner = Owner::find("rabbitmq").await?;
        let folder = folder.join(name);
        owner.make_folder(&folder)?;
        owner.write_secret(&folder.join(".erlang.cookie"), COOKIE)?;
        let program = |name| find_program(name, debian_folders());
        let (server, control) = (program("rabbitmq-server")?, program("rabbitmqctl")?);
        let ports = Ports { amqp: free_port()?, amqps: free_port()?, distribution: free_port()?, mapper };
        owner.write(&folder.join("env.conf"), "")?;
        let mut settings = format!("listeners.tcp.default = 127.0.0.1:{}\n{more}", ports.amqp);
        let mut plugins = "[].\n";
        if let Some(tls) = tls {
            tls.write(owner, &folder)?;
            settings += &tls_settings(ports.amqps, &folder);
            plugins = "[rabbitmq_auth_mechanism_ssl].\n";
        }
        owner.write(&folder.join("enabled_plugins"), plugins)?;
        owner.write(&folder.join("rabbitmq.conf"), &settings)?;
        let node = format!("{name}@localhost");
        let (daemon, erlang) = (None, ALONE);
        Ok(Self { owner, server, control, folder, ports, daemon, node, erlang, _port_mapper: port_mapper })
    }

    /// The URL of the default virtual host.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// The URL of the port with TLS, for a user who logs in by certificate.
    pub fn url_by_certificate(&self, host: &str) -> String {
        format!("amqps://{host}:{}/%2f?auth_mechanism=external", self.ports.amqps)
    }

    /// Gives it another certificate, which it shows to whoever connects from here on.
    pub async fn change_certificate(&self, tls: &ServerTls<'_>) -> Result<()> {
        tls.write(self.owner, &self.folder)?;
        // Erlang keeps what it has read of the files for two minutes.
        self.ctl(&["eval", "ssl:clear_pem_cache()."]).await.map(drop)
    }

    /// The URL of the default virtual host, for somebody else than the administrator.
    pub fn url_of(&self, account: &str) -> String {
        format!("amqp://{account}:{account}@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Makes an account, whose password is its name, that may do no more than this.
    pub async fn add_account(&self, account: &str, may: &Permissions) -> Result<()> {
        self.ctl(&["add_user", account, account]).await?;
        let Permissions { configure, write, read } = may;
        self.ctl(&["set_permissions", "-p", "/", account, configure, write, read]).await.map(drop)
    }

    /// Stops the node; durable things stay.
    pub async fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("RabbitMQ runs")?;
        self.ctl(&["stop"]).await?;
        daemon.wait().await
    }

    /// Ends the node at once, as a machine that loses its power does.
    pub fn kill(&mut self) -> Result<()> {
        // Dropped, it is killed with its children, and waited for.
        self.daemon.take().map(drop).context("RabbitMQ runs")
    }

    /// Leaves the node and its connections where they are, but it does nothing any more.
    pub fn freeze(&self) -> Result<()> {
        self.daemon.as_ref().context("RabbitMQ runs")?.signal_all("STOP")
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) -> Result<()> {
        self.daemon.as_ref().context("RabbitMQ runs")?.signal_all("CONT")
    }

    /// Spreads the leaders of the cluster's quorum queues evenly over its nodes.
    pub async fn rebalance(&self) -> Result<()> {
        let queues = find_program("rabbitmq-queues", debian_folders())?;
        let mut command = self.command(&queues);
        command.args(["-n", &self.node, "rebalance", "quorum"]);
        run(&mut command, "rebalance the leaders").await.map(drop)
    }

    /// Of each quorum queue its name, and the node that leads it.
    pub async fn leaders(&self) -> Result<Vec<(String, String)>> {
        let listed = self.ctl(&["--quiet", "--no-table-headers", "list_queues", "name", "leader"]).await?;
        let parts = |line: &str| {
            let (name, leader) = line.split_once('\t')?;
            Some((name.to_owned(), leader.trim_matches('\'').to_owned()))
        };
        Ok(listed.lines().filter_map(parts).collect())
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Sets a policy for queues.
    pub async fn set_policy(&self, name: &str, pattern: &str, definition: &str) -> Result<()> {
        self.ctl(&["set_policy", "--apply-to", "queues", name, pattern, definition]).await.map(drop)
    }

    /// Starts the node, and waits until it takes a login.
    pub async fn begin(&mut self) -> Result<()> {
        let log = self.folder.join("rabbitmq.log");
        let mut daemon = Daemon::spawn(NAME, "KILL", &mut self.command(&self.server), &log)?;
        let answers = eventually("RabbitMQ to answer", BOOT, async || {
            if let Some(ended) = daemon.ended() {
                return Some(Err(ended));
            }
            takes_login(&self.url()).await.then_some(Ok(()))
        });
        if let Err(ended) = answers.await {
            bail!("RabbitMQ ended ({ended}); see {}", log.display());
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stops and starts the node.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.begin().await
    }

    /// Stops the node for a while.
    pub async fn pause(&mut self, away: Duration) -> Result<()> {
        self.stop().await?;
        tokio::time::sleep(away).await;
        self.begin().await
    }

    /// Cuts every connection, as an administrator does.
    pub async fn cut_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "chaos"]).await.map(drop)
    }

    /// Takes all memory from the node, so that it takes nothing from publishers.
    pub async fn raise_memory_alarm(&self) -> Result<()> {
        self.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await.map(drop)
    }

    /// Gives the memory back.
    pub async fn clear_memory_alarm(&self) -> Result<()> {
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]).await.map(drop)
    }

    /// On connections from now on, lets the node lose patience with a message that is not acked for so long: it
    /// closes the channel with 406.
    pub async fn limit_unacked(&self, patience: Duration) -> Result<()> {
        let set = |name: &str, patience: Duration| {
            format!("application:set_env(rabbit, {name}, {}).", patience.as_millis())
        };
        // It looks at a channel once in this interval.
        self.ctl(&["eval", &set("channel_tick_interval", Duration::from_secs(1))]).await?;
        self.ctl(&["eval", &set("consumer_timeout", patience)]).await.map(drop)
    }

    /// Takes [`RabbitMq::limit_unacked`] back.
    pub async fn unlimit_unacked(&self) -> Result<()> {
        self.limit_unacked(Duration::from_secs(1800)).await
    }

    /// What there is of `what` (`connections`, `channels`), a line each.
    pub async fn list(&self, what: &str, column: &str) -> Result<Vec<String>> {
        let listed = self.ctl(&["--quiet", "--no-table-headers", &format!("list_{what}"), column]).await?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(&self.control);
        command.args(["-n", &self.node]).args(arguments);
        run(&mut command, &format!("rabbitmqctl {}", arguments.join(" "))).await
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.owner.command(program, &self.folder);
        let file = |name: &str| self.folder.join(name);
        command
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_CONF_ENV_FILE", file("env.conf"))
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", file("mnesia"))
            .env("RABBITMQ_LOG_BASE", file("log"))
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("ERL_EPMD_PORT", self.ports.mapper.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", self.erlang);
        command
    }
}

fn tls_settings(port: u16, folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "listeners.ssl.default = 127.0.0.1:{port}\n\
         ssl_options.cacertfile = {}\n\
         ssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = true\n\
         auth_mechanisms.1 = PLAIN\n\
         auth_mechanisms.2 = EXTERNAL\n\
         ssl_cert_login_from = common_name\n",
        file("client-ca.pem"),
        file("server.pem"),
        file("server-key.pem"),
    )
}

/// Debian's programs in PATH are wrappers that insist on the machine's own folders.
pub(super) fn debian_folders() -> [PathBuf; 1] {
    [PathBuf::from("/usr/lib/rabbitmq/bin")]
}

async fn takes_login(url: &str) -> bool {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let Ok(Ok(connection)) = timeout(Duration::from_secs(5), connecting).await else { return false };
    connection.close(200, "it answers".into()).await.is_ok()
}

/// Where the port mapper is that is in nobody's `PATH`.
fn erlang_folders() -> Vec<PathBuf> {
    vec![PathBuf::from("/usr/lib/erlang/bin")]
}
