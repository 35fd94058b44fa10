"""tpu_pod.sh among a fake gcloud: create or reuse, all workers, resume, stop."""

SLICE = ("run", "--name=h", "--zone=z", "--type=v5litepod-256")
FLAGS = ("--config=configs/h.py:1", "--workdir=gs://b/it's h")
RUN = (*SLICE, "--", *FLAGS)
READY = "h,READY,v5litepod-256\n"
RUNNING, FINISHED = "worker is running\n" * 2, "worker is finished\n" * 2
NONE = "worker is none\n" * 2


def answer(fakes, slices=(READY,), requests=("",), states=(FINISHED,), others=None):
    """What gcloud says of the slice, of the request for it and of the workers."""
    fakes.answer(
        {
            "git status": [""],
            "tpu-vm list": list(slices),
            "queued-resources list": list(requests),
            "tpu_worker.sh status": list(states),
            **(others or {}),
        }
    )


def said(fakes, part):
    """Calls that contain this."""
    return [call for call in fakes.calls if part in " ".join(call)]


def test_creates_copies_installs_and_starts_on_all_workers(fakes):
    answer(
        fakes,
        slices=["other,READY,v6e-8\n", "h,CREATING,v5litepod-256\n", READY],
        requests=["other,ACTIVE\n", "h,PROVISIONING\n"],
        states=[NONE, FINISHED],
    )
    outcome = fakes.run("tpu_pod.sh", *SLICE, "--spot", "--", *FLAGS)
    assert outcome.returncode == 0, outcome.stderr
    (create,) = said(fakes, "queued-resources create")
    assert create[4:] == [
        "create",
        "h",
        "--node-id=h",
        "--zone=z",
        "--accelerator-type=v5litepod-256",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    (copy,) = said(fakes, "tpu-vm scp")
    (archive,) = said(fakes, "git archive")
    assert copy[5:7] == [archive[-2].partition("=")[2], "h:flowtok_jax.tar.gz"]
    (setup,) = said(fakes, "tpu_worker.sh setup")
    (start,) = said(fakes, "tpu_worker.sh start")
    for call in (copy, setup, start, *said(fakes, "tpu_worker.sh status")):
        assert "--worker=all" in call
    flags = "--config=configs/h.py:1 --workdir='gs://b/it'\\''s h'"
    assert start[-1].endswith(f"start --cluster_timeout=300 {flags}")
    order = [fakes.calls.index(call) for call in (create, copy, setup, start)]
    assert order == sorted(order)


def test_reuses_a_slice_that_is_ready(fakes):
    answer(fakes, states=["worker is finished\nworker is failed-1\n", FINISHED])
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 0
    assert not said(fakes, "create")
    assert len(said(fakes, "tpu_worker.sh start")) == 1


def test_attaches_to_a_run_that_goes_on(fakes):
    answer(fakes, states=[RUNNING, "worker is finished\nworker is running\n", FINISHED])
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 0
    assert not said(fakes, "scp")
    assert not said(fakes, "tpu_worker.sh start")
    assert len(said(fakes, "--worker=0")) == 2


def test_a_preempted_slice_is_made_again_and_the_same_command_runs(fakes):
    answer(
        fakes,
        slices=[READY, "h,PREEMPTED,v5litepod-256\n", "", "", READY],
        requests=["h,SUSPENDED\n", "", "h,ACTIVE\n"],
        states=[NONE, NONE, FINISHED],
    )
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 0, outcome.stderr
    (delete,) = said(fakes, "queued-resources delete")
    assert delete[-2:] == ["--force", "--quiet"]
    assert len(said(fakes, "queued-resources create")) == 1
    first, second = said(fakes, "tpu_worker.sh start")
    assert first == second


def test_a_machine_that_goes_away_is_no_finished_run(fakes):
    answer(
        fakes,
        states=[RUNNING, "worker is finished\nworker is terminated\n", FINISHED],
    )
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 0
    assert len(said(fakes, "tpu_worker.sh start")) == 1


def test_a_create_that_fails_ends_it(fakes):
    answer(fakes, slices=[""], others={"queued-resources create": [7]})
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 1
    assert "error: gcloud could not ask for h" in outcome.stderr
    assert "create" in fakes.calls[-1]


def test_a_request_that_fails_ends_it(fakes):
    answer(fakes, slices=[""], requests=["", "h,FAILED\n"])
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 1
    assert "error: the request for h failed" in outcome.stderr
    assert not said(fakes, "delete")


def test_a_slice_that_someone_deletes_is_not_made_again(fakes):
    answer(fakes, slices=[READY, ""], states=[RUNNING])
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 1
    assert "h was deleted meanwhile" in outcome.stderr
    assert not said(fakes, "create")


def test_a_list_that_is_not_allowed_creates_nothing(fakes):
    answer(fakes, slices=[1])
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 1
    assert not said(fakes, "create")


def test_another_type_of_this_name_is_refused(fakes):
    answer(fakes, slices=["h,READY,v5litepod-16\n"])
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 2
    assert "h is a v5litepod-16, not a v5litepod-256" in outcome.stderr


def test_failures_in_a_row_end_it(fakes):
    answer(fakes, states=[NONE, "worker is failed-1\nworker is failed-2\n"])
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 1
    assert "main failed 3 times in a row" in outcome.stderr
    assert len(said(fakes, "tpu_worker.sh start")) == 3


def test_restarts_are_bounded(fakes):
    answer(fakes, states=["worker is lost\n"])
    outcome = fakes.run("tpu_pod.sh", *SLICE, "--restarts=1", "--", *FLAGS)
    assert outcome.returncode == 1
    assert len(said(fakes, "tpu_worker.sh start")) == 2


def test_a_mistake_in_the_flags_is_not_tried_again(fakes):
    answer(fakes, states=[NONE, "worker is failed-2\n"])
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 2
    assert len(said(fakes, "tpu_worker.sh start")) == 1


def test_a_lost_connection_starts_nothing(fakes):
    answer(
        fakes,
        states=[RUNNING, 255, RUNNING, FINISHED],
        others={"tpu_worker.sh follow": [255, ""]},
    )
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 0
    assert not said(fakes, "tpu_worker.sh start")


def test_a_failed_install_does_not_start(fakes):
    answer(fakes, states=[NONE], others={"tpu-vm scp": [1]})
    assert fakes.run("tpu_pod.sh", *RUN).returncode == 1
    assert not said(fakes, "tpu_worker.sh setup")
    assert not said(fakes, "tpu_worker.sh start")


def test_what_is_not_committed_is_refused(fakes):
    fakes.answer({"git status": [" M configs/h.py\n"]})
    outcome = fakes.run("tpu_pod.sh", *RUN)
    assert outcome.returncode == 2
    assert "changes that are not committed" in outcome.stderr
    assert [call[0] for call in fakes.calls] == ["git"]


def test_stop_and_down(fakes):
    place = ("--name=h", "--zone=z", "--project=p")
    assert fakes.run("tpu_pod.sh", "stop", *place).returncode == 0
    assert fakes.run("tpu_pod.sh", "down", *place).returncode == 0
    stop, down = fakes.calls
    assert stop[4:6] == ["ssh", "h"]
    assert stop[-2:] == [
        "--worker=all",
        "--command=bash flowtok_jax/launch/tpu_worker.sh stop",
    ]
    assert down[3:] == [
        "queued-resources",
        "delete",
        "h",
        "--zone=z",
        "--project=p",
        "--force",
        "--quiet",
    ]
