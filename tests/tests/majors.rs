//! Every major version of the run: backup, streaming, and a subscription through the tunnel.

use testbed::{Node, Tunnel, programs};

#[test]
fn every_major_replicates() {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let primary = Node::builder("primary").version(major).init().started();
        primary.query("create table t (id int primary key); insert into t values (1)");
        primary.query("create publication p for table t");
        let tunnel = Tunnel::to(&primary);
        let conninfo = tunnel.conninfo();

        let standby = Node::builder("standby")
            .version(major)
            .init_from_backup(&conninfo);
        standby.set_standby(&conninfo, None);
        let standby = standby.started();
        primary.wait_for_standby("standby");

        let subscriber = Node::builder("subscriber").version(major).init().started();
        subscriber.query("create table t (id int primary key)");
        subscriber.query(&format!(
            "create subscription s connection '{conninfo} dbname=postgres' publication p"
        ));

        primary.query("insert into t values (2)");
        standby.catch_up_with(&primary);
        assert_eq!(standby.query("select count(*) from t"), "2");
        subscriber.poll_query_until("select count(*) from t", "2");
    }
}
