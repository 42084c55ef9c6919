"""The method: pure functions and small frozen dataclasses, one function per equation.

The functions use no model, file, engine or clock; random choices use the ``random.Random`` passed by the caller.
Equation numbers refer to "Attention as a Compass" (arXiv 2509.26628). The tables of names (``CRITERIA``,
``ADVANTAGES``, ``SPLITTERS``, ``MEASURES``, ``REDUCTIONS``) are in the modules of their functions.

==============================  =============================================================
setting (steps of a response)   :func:`attnrl.method.steps.split_steps`
eq. 1, policy loss              :func:`attnrl.method.loss.policy_loss`, KL: ``loss.kl_k3``
eq. 2, value of a state         :meth:`attnrl.method.forest.Forest.paths`
eq. 3, tree advantage           :func:`attnrl.method.forest.tree_advantage`
GRPO advantage                  :func:`attnrl.method.advantage.grpo_advantages`
eq. 4, step-to-step attention   :func:`attnrl.method.influence.step_attention`
eq. 5, FCI of one head          :func:`attnrl.method.influence.forward_context_influence`
eq. 6, FCI over layers, heads   :func:`attnrl.method.measures.reduce_max`
eq. 7, branch points            :func:`attnrl.method.branching.branch_points`
eq. 8, filtering                :func:`attnrl.method.adaptive.keep_problem`
eq. 9, expansion                :func:`attnrl.method.adaptive.expansion_count`
eq. 10, batch size              :class:`attnrl.method.adaptive.BatchSizeController`
==============================  =============================================================

In formulas, n is the number of initial responses (trunks). Shape letters: see CONTRIBUTING.md.
"""
