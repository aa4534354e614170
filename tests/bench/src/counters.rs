//! The guest's own count of what ran, read through one shell that stays.

use anyhow::{Context, Result};
use linkspan_host::{Child, Stdio, UtilityVm};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Instructions, in a VM that counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) guest: u64,
    /// The agent's one lasting thread: those that mount come and go, and their count with them.
    pub(crate) agent: u64,
}

pub(crate) struct Counters {
    child: Child,
    lines: tokio::io::Lines<BufReader<linkspan_host::Stream>>,
    agent: u32,
}

/// Answers `c PID` with the processors' and a process's run time, `m PID` with its memory. It
/// uses nothing but the shell itself, so that a look costs little and always the same.
const SCRIPT: &str = r#"
while read -r what pid; do
  case $what in
  c) while read -r l; do case $l in cpu*) echo "$l";; esac; done < /proc/schedstat
     read -r a b < /proc/$pid/schedstat && echo "task $a";;
  m) while read -r k v u; do case $k in VmRSS:) echo "rss $v";; esac; done < /proc/$pid/status;;
  a) for p in /proc/[0-9]*; do
       read -r n < $p/comm && case $n in linkspan-agent) echo "pid ${p#/proc/}";; esac
     done;;
  esac
  echo .
done
"#;

impl Counters {
    pub(crate) async fn start(uvm: &UtilityVm) -> Result<Self> {
        let stdio = Stdio { stdin: true, stdout: true, stderr: false };
        let command = uvm.command("/bin/busybox").args(["sh", "-c", SCRIPT]).stdio(stdio);
        let mut child = command.spawn().await?;
        let stdout = child.stdout.take().context("stdout")?;
        let mut counters = Self { child, lines: BufReader::new(stdout).lines(), agent: 0 };
        let pids = counters.ask("a 1").await?;
        let agent = pids.iter().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
        counters.agent = agent.context("there is no process linkspan-agent")?;
        Ok(counters)
    }

    async fn ask(&mut self, question: &str) -> Result<Vec<String>> {
        let stdin = self.child.stdin.as_mut().context("stdin")?;
        stdin.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            let line = self.lines.next_line().await?.context("the counting shell ended")?;
            if line == "." {
                return Ok(answer);
            }
            answer.push(line);
        }
    }

    async fn read(&mut self) -> Result<Cost> {
        let mut cost = Cost::default();
        for line in self.ask(&format!("c {}", self.agent)).await? {
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "task" => cost.agent += words[1].parse::<u64>()?,
                // The seventh figure of a processor is the time that it ran tasks.
                _ => cost.guest += words.get(7).context("schedstat")?.parse::<u64>()?,
            }
        }
        Ok(cost)
    }

    /// What one run of `work` costs, the looks themselves taken off.
    pub(crate) async fn measure(
        &mut self,
        times: u64,
        mut work: impl AsyncFnMut(u64) -> Result<()>,
    ) -> Result<Cost> {
        let (first, second) = (self.read().await?, self.read().await?);
        for n in 0..times {
            work(n).await?;
        }
        let third = self.read().await?;
        let own = |of: fn(&Cost) -> u64| {
            let look = of(&second).saturating_sub(of(&first));
            of(&third).saturating_sub(of(&second)).saturating_sub(look) / times
        };
        Ok(Cost { guest: own(|cost| cost.guest), agent: own(|cost| cost.agent) })
    }

    pub(crate) async fn agent_rss_kib(&mut self) -> Result<u64> {
        let answer = self.ask(&format!("m {}", self.agent)).await?;
        let line = answer.first().context("the agent is gone")?;
        Ok(line.trim_start_matches("rss ").trim().parse()?)
    }
}
