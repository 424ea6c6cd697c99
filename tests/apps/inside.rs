//! Programs that bring their own terminals or servers: tmux with its server in the job, script(1),
//! a shell with job control, a database that writes its file by a child. Each is run unmoved, too.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs;
use super::common::pty::Terminal;
use super::common::until;
use super::trees::{like_unmoved, lines, script};
use super::{in_steps, move_on, numbers, source, When, LONG};

/// What is done in the windows of tmux in one turn.
type Turn<'a> = &'a dyn Fn(&mut Terminal, usize) -> Result<()>;

const TMUX: &str = "set -g status off
set -g escape-time 0
set -g assume-paste-time 0
set -g default-command 'PS1=ready: exec sh'
";

/// Three windows, one of them with vim, used through the client. Unmoved and moved the same is
/// shown and written.
pub fn tmux_server(hosts: &Hosts, start: Start) -> Result<()> {
    let tmux = needs("tmux")?;
    needs("vim")?;
    let want = tmux_session(hosts, Start::Native, &tmux)?;
    let got = tmux_session(hosts, start, &tmux)?;
    ensure!(got == want, "moved vim wrote {got:?}, unmoved {want:?}");
    Ok(())
}

fn tmux_session(hosts: &Hosts, start: Start, tmux: &Path) -> Result<String> {
    let dir = hosts.fresh_dir("windows")?;
    let (config, text) = (dir.join("conf"), dir.join("text"));
    fs::write(&config, TMUX)?;
    fs::write(&text, "one\n")?;
    hosts.give(&text)?;
    let args = ["-u", "-f", &config.display().to_string(), "-S"].map(String::from);
    let program = Program::new(tmux).args(args).args([dir.join("s").display()]);
    let program = program.args(["new-session", "-x", "80", "-y", "24"]).env("TERM", "screen");
    let (mut job, mut tty) = Job::in_terminal(hosts, start, program)?;
    tty.expect("ready:")?;
    tty.type_in("n=40; echo set''-n\r")?;
    tty.expect("set-n")?;
    tty.type_in("\x02cecho in''-two\r")?;
    tty.expect("in-two")?;
    tty.type_in(&format!("vim -u NONE -N -i NONE -n {}; echo left''-vim\r", text.display()))?;
    tty.expect("one")?;
    tty.type_in("\x02cecho in''-three\r")?;
    tty.expect("in-three")?;
    tty.type_in("while read w; do echo got''-$w; done\r")?;
    let turn: Turn<'_> = &|tty, n| {
        tty.type_in(&format!("\x020echo sum''-$((n + {n}))\r"))?;
        tty.expect(&format!("sum-{}", 40 + n))?;
        tty.type_in(&format!("\x021oline-{n}\x1b:w\r"))?;
        tty.expect("written")?;
        tty.type_in(&format!("\x022word-{n}\r"))?;
        tty.expect(&format!("got-word-{n}")).map(drop)
    };
    for n in 1..=5 {
        turn(&mut tty, n).with_context(|| format!("in turn {n}: {}", tty.shown()))?;
        move_on(&mut job).with_context(|| format!("move {n}"))?;
    }
    turn(&mut tty, 6)?;
    tty.type_in("\x04\x04")?;
    tty.type_in("\x021:q\r")?;
    // What is typed while vim ends may be thrown away, and its window shows old prompts again.
    tty.expect("left-vim")?;
    tty.type_in("exit\r")?;
    tty.expect("sum-46")?;
    tty.type_in("exit\r")?;
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", tty.shown());
    job.await_nothing_left()?;
    Ok(fs::read_to_string(&text)?)
}

/// A shell script under script(1), which has the terminal for it.
pub fn under_script(hosts: &Hosts, start: Start) -> Result<()> {
    let (script, file) = (needs("script")?, source("steps.sh")?);
    let program = || {
        let command = format!("stty -echo -onlcr; exec bash {}", file.display());
        Program::new(&script).args(["-q", "-e", "-E", "never", "-c", &command, "typescript"])
    };
    in_steps(hosts, start, program, &numbers(12), When::Inside)
}

/// An interactive bash: jobs in the background, a pipeline, `wait`, a child in the foreground that is
/// stopped and continued.
pub fn bash_jobs(hosts: &Hosts, start: Start) -> Result<()> {
    let args = ["--norc", "--noprofile", "--noediting", "-i"];
    let program = Program::new(needs("bash")?).args(args).env("PS1", "prompt$ ");
    let (mut job, mut tty) = Job::in_terminal(hosts, start, program)?;
    tty.expect("prompt$ ")?;
    if start == Start::Attached {
        job.attach()?;
    }
    let mut say = |job: &mut Job<'_>, keys: &str, answers: &[&str]| -> Result<()> {
        tty.type_in(keys)?;
        for answer in answers {
            tty.expect(answer).with_context(|| format!("{keys:?}: {}", job.said()))?;
        }
        Ok(())
    };
    say(&mut job, "(sleep 2; exit 5) & first=$!; sleep 1000 &\r", &["prompt$ "])?;
    move_on(&mut job)?;
    say(&mut job, "jobs | grep -c Running\r", &["2\r\n", "prompt$ "])?;
    say(&mut job, "wait $first; echo code''-$?\r", &[])?;
    move_on(&mut job)?;
    say(&mut job, "", &["code-5\r\n", "prompt$ "])?;
    let pipeline = "seq 1 300000 | sed 's/$/ x/' | sort -k1,1nr | head -n 2 | tail -n 1\r";
    say(&mut job, pipeline, &[])?;
    move_on(&mut job)?;
    say(&mut job, "", &["299999 x\r\n", "prompt$ "])?;
    say(&mut job, "cat\r", &["cat\r\n"])?;
    say(&mut job, "echo of cat\r", &["echo of cat\r\necho of cat\r\n"])?;
    move_on(&mut job)?;
    say(&mut job, "\x1a", &["Stopped", "prompt$ "])?;
    move_on(&mut job)?;
    say(&mut job, "jobs | grep -c Stopped\r", &["1\r\n", "prompt$ "])?;
    say(&mut job, "fg\r", &["cat\r\n"])?;
    move_on(&mut job)?;
    say(&mut job, "again\r", &["again\r\nagain\r\n"])?;
    say(&mut job, "\x03", &["prompt$ "])?;
    say(&mut job, "kill %2; wait %2; echo code''-$?\r", &["code-143\r\n", "prompt$ "])?;
    say(&mut job, "exit 7\r", &[])?;
    let code = job.end(LONG)?;
    ensure!(code == 7, "exit code {code}: {}", tty.shown());
    job.await_nothing_left()
}

/// A redis-server that is asked from outside of the job, over a new connection for each question.
pub fn redis_serves(hosts: &Hosts, start: Start) -> Result<()> {
    const ASKING: &str = "cd \"$1\"; n=0
        client=$2 port=$3
        ask() { \"$client\" -p \"$port\" \"$@\" 2>&1; }
        until [ \"$(ask ping)\" = PONG ]; do sleep 0.05; done
        while [ ! -e stop ]; do
            n=$((n + 1))
            a=$(ask incr turns) b=$(ask append log \"$n,\") c=$(ask getrange log -$((${#n} + 1)) -1)
            length=$((length + ${#n} + 1))
            [ \"$a $b $c\" = \"$n $length $n,\" ] || { echo \"turn $n: $a $b $c\"; exit 1; }
            echo \"turn $n\"
        done";
    let (bash, server, client) = (needs("bash")?, needs("redis-server")?, needs("redis-cli")?);
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let dir = hosts.fresh_dir("redis")?;
    hosts.give(&dir)?;
    let words = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--loglevel", "warning"];
    let mut job = Job::start_early(hosts, start, Program::new(server).args(words))?;
    let asking = Program::new(bash).args(["-c", ASKING, "asking"]);
    let asking = asking.args([dir.display(), client.display()]).args([&port]);
    let mut asking = Job::start_early(hosts, Start::Native, asking)?;
    let mut await_turns = |more: usize| {
        let turns = |job: &Job<'_>| job.stdout.text().lines().count();
        let wanted = turns(&asking) + more;
        until(LONG, "answers", || {
            let over = asking.child.try_wait()?.is_some();
            ensure!(!over, "{}", asking.said());
            Ok((turns(&asking) >= wanted).then_some(()))
        })
    };
    await_turns(3)?;
    if start == Start::Attached {
        job.attach()?;
    }
    for turn in 0..5 {
        // Wherever in a turn that is.
        await_turns(1 + turn * 7 % 4)?;
        move_on(&mut job)?;
    }
    await_turns(20)?;
    fs::write(dir.join("stop"), "")?;
    let code = asking.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", asking.said());
    let mut shutdown = hosts.command(0, &client);
    procs::run(shutdown.args(["-p", &port, "shutdown", "nosave"]), LONG)?.good("shutdown")?;
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()
}

/// A redis-server whose child writes the file while the server is asked and changed. The client is
/// in the job, too.
pub fn redis_saves(hosts: &Hosts, start: Start) -> Result<()> {
    let (bash, server, client) = (needs("bash")?, needs("redis-server")?, needs("redis-cli")?);
    let text = format!(
        "set -e; cd \"$1\"
        serve() {{
            '{server}' --port 0 --unixsocket s --dir . --save '' --dbfilename dump.rdb \\
                --enable-debug-command yes --loglevel warning --rdb-key-save-delay $1 \
                >/dev/null 2>&1 &
            until [ \"$(ask ping)\" = PONG ]; do sleep 0.05; done
        }}
        ask() {{ '{client}' -s s \"$@\" 2>/dev/null; }}
        field() {{ ask info persistence | tr -d '\\r' | sed -n \"s/^$1://p\"; }}
        serve 400
        ask debug populate 10000 key 64
        ask debug digest
        ask bgsave >/dev/null
        n=0
        echo \"saving $(field rdb_bgsave_in_progress)\"
        while [ $n -lt 120 ]; do
            n=$(ask incr turns)
            ask append log \"$n,\" >/dev/null
            [ $((n % 12)) != 0 ] || echo \"turn $n\"
        done
        while [ \"$(field rdb_bgsave_in_progress)\" != 0 ]; do sleep 0.05; done
        field rdb_last_bgsave_status
        ask debug digest
        ask shutdown nosave || :
        wait
        serve 0
        ask dbsize
        ask debug digest
        ask shutdown nosave || :
        wait",
        server = server.display(),
        client = client.display()
    );
    like_unmoved(hosts, start, || Ok(script(&bash, &hosts.fresh_dir("redis")?, &text)), lines)
}
