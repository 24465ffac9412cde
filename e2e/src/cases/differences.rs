//! Where containerd 2.4.2 fails a case by design, and why ours is the better answer. Such a case runs against it all the
//! same; that it starts to pass there fails the run, so that the list only shrinks.

/// Case (`topic::name`) and reason.
pub(crate) const CONTAINERD: &[(&str, &str)] = &[
    ("sandbox::unknown_ids", "its messages do not name the id that was asked for"),
    ("sandbox::shm_is_shared_by_the_pod", "its /dev/shm in the container loses nosuid, nodev and noexec"),
    ("sandbox::a_retry_joins", "it answers a retry with `name is reserved`; kubelet then waits for its own time-outs"),
    ("container::a_retry_of_create_joins", "as for sandboxes"),
    ("container::unstarted_is_replaced", "as for sandboxes"),
    ("exec::large_output_is_capped", "its cap, 16 MiB of stdout alone, makes a message that gRPC clients refuse"),
    (
        "exec::a_child_in_the_background",
        "it waits for all who hold stdout, unless configured otherwise, longer than the call's time limit",
    ),
    ("log::path_outside_is_refused", "it writes wherever the path leads"),
    ("log::symlinked_directory_is_refused", "as above"),
    ("security::unknown_user_is_refused", "it refuses, without the name"),
    ("security::add_and_drop_capabilities", "it takes names without CAP_ only, and ignores the rest"),
    ("security::unknown_capability_is_refused", "as above"),
    ("image::list_filter", "it ignores the filter of ListImages"),
    ("image::links_owners_and_modes", "a hard link into a lower layer fails its whole pull"),
    ("badinput::bad_port_mappings", "it passes the port on to a plugin that ignores it"),
    (
        "restart::exit_while_down",
        "its log pipes are the server's: what is written while it is down is lost, and may kill the writer",
    ),
    ("registry::other_platform", "its message names neither the image nor the host"),
];
