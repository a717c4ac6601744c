use std::time::Instant;
use stateright::{Checker, Model, HasDiscoveries};
use tokenkeeper_model::*;
#[test]
fn explore() {
    let g = |n: &str, d: u8| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    for tokens in [RefreshTokens::OneTime, RefreshTokens::AcceptedAgain, RefreshTokens::Kept] {
        let p = Protocol { rules: Rules::KEPT, tokens, acts_at_once: true, requests: g("REQ",3), faults: g("FAULTS",2), calls: g("CALLS",3), login: g("LOGIN",0)>0 };
        let t = Instant::now();
        let c = p.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{tokens:?} unique {} total {} depth {} in {:?}", c.unique_state_count(), c.state_count(), c.max_depth(), t.elapsed());
        for (n, path) in c.discoveries() {
            println!("  {n}");
            if properties::ALWAYS.contains(&n) {
                for (s, a) in path.into_vec() {
                    let who = match a { Some(Action::Worker(i, _)) => s.workers[usize::from(i)].name.0, _ => '-' };
                    println!("     row {:?} | {who} {a:?}", s.row);
                }
            }
        }
    }
}
