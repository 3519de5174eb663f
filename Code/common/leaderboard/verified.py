"""What each method of this package is checked against, and by which tests: the truth of the column "verified"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REFERENCE, PUBLISHED, PROPERTIES = "reference", "published numbers", "properties"
MEANING = {
    REFERENCE: "a second, literal implementation in the tests (or scipy's, or timm's own blocks) gives the same "
    "logits, tokens, scores or decisions on seeded networks or tensors; the authors' programs were not run",
    PUBLISHED: "multiply-accumulates, savings or token counts come out as the authors print them; not accuracies",
    PROPERTIES: "worked examples and properties only, such as the unreduced model's logits where nothing is dropped",
}
CONTRACT = "test_contract.py"  # what holds for every method: identity, batches, formats, traces


@dataclass(frozen=True)
class Verified:
    """Tests, as ``file.py::test``, by what they hold a method against."""

    reference: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    properties: tuple[str, ...] = (CONTRACT,)

    @property
    def text(self) -> str:
        """The strongest kinds of check there are.

        >>> Verified(reference=("a.py::test_a",), published=("b.py::test_b",)).text, Verified().text
        ('reference + published numbers', 'properties')
        """
        kinds = [REFERENCE] * bool(self.reference) + [PUBLISHED] * bool(self.published)
        return " + ".join(kinds) or PROPERTIES

    @property
    def tests(self) -> tuple[str, ...]:
        return (*self.reference, *self.published, *self.properties)


_COST = "test_cost.py::test_published_gflops_and_params"
_PATTERN = Verified(
    reference=("test_patterns.py::test_what_is_kept_goes_on_as_it_is",),
    published=("test_patterns.py::test_counts_of_stages",),
)
_SOFT = Verified(reference=("test_soft_merging.py::test_merged_tokens_and_trace",))
_BOUND = Verified(properties=(CONTRACT, "test_idling.py::test_re_entry"))
VERIFIED: Mapping[str, Verified] = {
    "tram": Verified(("test_tram.py::test_logits_equal_the_definition_with_and_without_the_skip",), (_COST,)),
    "topk": Verified(("test_competitors.py::test_topk_keeps_what_the_class_token_attends_to",), (_COST,)),
    "ats": Verified(
        ("test_competitors.py::test_ats_score", "test_competitors.py::test_ats_takes_the_nearest_of_the_cdf")
    ),
    "patchmerger": Verified(("test_competitors.py::test_patchmerger_is_softmax_over_normalised_tokens",), (_COST,)),
    "evit": Verified(
        properties=(
            CONTRACT,
            "test_evit.py::test_fused_token_by_hand",
            "test_evit.py::test_kept_patches_are_those_of_topk_with_mean_over_heads_at_the_first_stage",
        )
    ),
    "dynamicvit": Verified(("test_dynamicvit.py::test_predictor_by_formula",)),
    "tome": Verified(
        properties=(
            CONTRACT,
            "test_tome.py::test_matching_by_hand",
            "test_tome.py::test_merged_tokens_are_the_means_of_their_patches",
        )
    ),
    "kmedoids": Verified(("test_clustering.py::test_scatter_form_is_the_loop_form",)),
    "dpcknn": Verified(("test_clustering.py::test_is_its_definition",)),
    "sinkhorn": _SOFT,
    "sit": _SOFT,
    "l1": _PATTERN,
    "l2": _PATTERN,
    "linf": _PATTERN,
    "idle_topk": Verified(("test_idling.py::test_idlevit_computes_the_patches_of_largest_cls_logit",)),
    "idle_mlp": Verified(
        published=("test_idling.py::test_the_published_savings", "test_idling.py::test_the_published_predictor")
    ),
    "idle_oracle": _BOUND,
    "idle_random": _BOUND,
    "patch_slimming": Verified(
        ("test_patch_slimming.py::test_compact_is_masked_with_masked_keys",),
        ("test_patch_slimming.py::test_both_counters_on_the_published_schedule",),
    ),
    "dynamic_slimming": Verified(
        properties=("test_slimming_gates.py::test_a_plan_gives_the_dynamic_model_its_numbers",)
    ),
    "random": Verified(("test_random_drop.py::test_what_is_kept_sees_all_that_were_there",)),
    "downsample": Verified(
        ("test_downsample.py::test_it_is_timms_model_of_the_smaller_size_and_the_original_stays_as_it_was",)
    ),
    "diffrate": Verified(published=("test_field_methods.py::test_published_schedules_cost_what_the_authors_say",)),
    "ppt": Verified(published=("test_field_methods.py::test_the_published_setting_of_ppt_costs_what_its_authors_say",)),
    "atc": Verified(("test_field_methods.py::test_clusters_are_scipys_and_total_size_stays",)),
    "pitome": Verified(
        properties=(
            CONTRACT,
            "test_field_methods.py::test_matching_of_the_worked_example",
            "test_field_methods.py::test_energies_of_the_worked_example",
        )
    ),
}
