"""Which files are slow, and which of them start first."""

from __future__ import annotations

from pathlib import Path

import pytest

FIRST = (
    "deployment/test_superlink.py", "test_examples.py", "deployment/test_worker.py", "test_docs.py",
    "test_damaged_files.py", "experiments/test_compare.py", "test_cli_stop.py",
    "test_packaging.py", "test_site.py",
)  # fmt: skip
"""Files that take longest. The first of them mostly wait for other processes, and the rest compute beside them."""
SLOW_FILES = {
    "experiments/test_deciding_metric.py", "federation/test_best_round.py",
    "attacks/test_audit.py", "cli/test_doctor.py", "cli/test_doctor_runs.py",
    "cli/test_doctor_sites.py", "cli/test_model_commands.py",
    "deployment/test_client_manager.py", "deployment/test_coordinator.py", "deployment/test_end_of_run.py",
    "deployment/test_gate.py", "deployment/test_going_back.py", "deployment/test_membership.py",
    "deployment/test_phases.py",
    "deployment/test_sealed_sites.py", "deployment/test_sealed_once.py", "deployment/test_sealed_lists.py",
    "deployment/test_sealed_holders.py",
    "deployment/test_release_log.py", "deployment/test_site_guards.py", "deployment/test_site_privacy.py",
    "deployment/test_worker.py", "experiments/test_compare.py", "experiments/test_crash.py",
    "experiments/test_progress.py", "experiments/test_beside_a_run.py", "experiments/test_headline.py",
    "experiments/test_runner.py", "export/test_evaluate.py",
    "export/test_export.py", "export/test_hub.py", "export/test_locate.py", "federation/test_client_settings.py",
    "export/test_native_export.py", "federation/test_calibrate.py", "federation/test_initial_adapter.py",
    "federation/test_cost.py", "federation/test_cost_of_a_run.py", "federation/test_sealed_run.py",
    "federation/test_proximal.py", "federation/test_simulation.py", "privacy/test_canaries.py",
    "privacy/test_noise_to_signal.py", "privacy/test_noised_training.py", "reports/test_audit_page.py",
    "reports/test_reports_browser.py", "reports/test_reports_formats.py", "tasks/test_ask_a_language_model.py",
    "tasks/test_ask_about_images.py", "tasks/test_audit_images.py", "tasks/test_causal_lm.py",
    "tasks/test_image_classification.py", "tasks/test_image_text.py", "tasks/test_image_text_pairs.py",
    "tasks/test_image_text_to_text.py", "tasks/test_sequence_to_sequence.py", "tasks/test_size.py",
    "tasks/test_multi_label_classification.py", "tasks/test_text_regression.py", "tasks/test_train_tokens.py",
    "tasks/test_train_norms.py", "deployment/test_raw_summaries.py", "methods/test_ce_lora_authors.py",
    "federation/test_chosen_interpolation.py", "methods/test_given_groups.py",
    "tasks/test_token_classification.py",
    "tasks/tour/test_tour_images.py", "tasks/tour/test_tour_texts.py", "tasks/tour/test_tour_writers.py",
    "test_cli_run.py", "test_cli_stop.py",
    "test_damaged_files.py", "test_docs.py", "test_escaping.py", "test_examples.py", "test_kept_runs.py",
    "test_lock.py", "test_packaging.py", "test_site.py", "tracking/test_to_mlflow.py",
    "tracking/test_to_tensorboard.py", "tracking/test_to_wandb.py",
}  # fmt: skip
"""Files whose tests train models or start processes; `make test-quick` leaves them out."""


HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, before those that are not asked for are left out; put `FIRST` first."""
    places = {name: place for place, name in enumerate(FIRST)}
    names = {item.path: item.path.relative_to(HERE).as_posix() for item in items}
    for item in items:
        if names[item.path] in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: places.get(names[item.path], len(FIRST)))
