"""What the report says, in English and Chinese side by side: whoever changes the one sees the other."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "zh"]


class Words:
    """Speaks one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._which = ("en", "zh").index(language)

    def __call__(self, key: str, **facts: object) -> str:
        """The sentence, with the facts in it."""
        return SENTENCES[key][self._which].format(**facts)

    def term(self, name: str) -> str:
        """A name that a command has put into its results; those that we do not know stay as they are."""
        return TERMS[name][self._which] if name in TERMS else name

    def sentence(self, parts: list[str]) -> str:
        """One, of several."""
        return self.joined(parts) + (".", "。")[self._which]

    def joined(self, parts: list[str]) -> str:
        """As an enumeration."""
        return ("; ", "；")[self._which].join(parts)


SENTENCES: Final[dict[str, tuple[str, str]]] = {
    # The page.
    "title": ("trioagg: the latency report", "trioagg 延迟报告"),
    "lead": (
        "How long a message waits for its list of results, and why; measured on one machine, beside what one would "
        "write without trioagg.",
        "一条消息要等多久才能得到它的结果列表，时间花在哪里；在同一台机器上测量，并与不用 trioagg 的写法对比。",
    ),
    "colon": (": ", "："),
    "in_short": ("In short", "要点"),
    "how_title": ("How to read this", "如何阅读"),
    "how_1": (
        "Latency counts from the moment at which a message was <em>due</em>, whether or not anybody kept up. Who falls "
        "behind cannot hide it (no “coordinated omission”).",
        "延迟从消息<em>应当</em>发出的时刻算起，无论系统是否跟得上，因此落后无法被掩盖（没有“协同遗漏”）。",
    ),
    "how_2": (
        "p50 is the middle one of all lists; p99 is what one in a hundred exceeds. A percentile is given only where at "
        "least {beyond} samples lie beyond it; “–” stands for the others.",
        "p50 是所有结果列表的中位数；每一百个中有一个超过 p99。"
        "只有当至少 {beyond} 个样本超过某百分位时才给出该百分位；其余以“–”表示。",
    ),
    "how_3": (
        "A difference below the noise floor ({p50} ms p50, {p99} ms p99: how late this machine wakes a task that only "
        "sleeps) says nothing.",
        "小于噪声下限的差异没有意义（本机唤醒一个仅休眠的任务的迟到时间：p50 为 {p50} ms，p99 为 {p99} ms）。",
    ),
    "how_4": (
        "Compare contestants of one run with each other, not with another machine’s. Colours and shapes are the same "
        "in all plots; trioagg’s line is the thick blue one.",
        "只比较同一次运行中的各方，不要与其他机器的数字比较。所有图中颜色与标记一致；trioagg 是蓝色粗线。",
    ),
    "how_5": (
        "A run is invalid, and marked <span class='bad'>invalid</span>, if the sender itself was late, by "
        "more than a tenth of the latency: its figures are shown, and no sentence is built on them.",
        "若发送端自身迟到超过延迟的十分之一，该次运行无效，"
        "标为<span class='bad'>无效</span>：数字仍列出，但不据此下结论。",
    ),
    "quick": (
        "Measured with --quick: a look at the report, not at the performance.",
        "使用 --quick 测量：仅供预览，不代表性能。",
    ),
    "nothing": (
        "there is no result.json in {directory}: python -m bench pipeline --out {directory} makes one",
        "{directory} 中没有 result.json：请先运行 python -m bench pipeline --out {directory}",
    ),
    "missing": ("No data. This command makes them: {command}", "没有数据。运行以下命令即可得到：{command}"),
    "made_from": ("Made from", "数据来源"),
    # The facts of the machine.
    "fact_machine": ("Machine", "机器"),
    "fact_versions": ("Versions", "版本"),
    "fact_date": ("Date", "日期"),
    "fact_revision": ("Revision", "Git 版本"),
    "fact_noise": ("Noise floor", "噪声下限"),
    "fact_broker": ("Broker", "消息代理"),
    "cpus": ("{cpus} CPUs", "{cpus} 个 CPU"),
    "load": ("load {load} at the start", "开始时负载 {load}"),
    "governor": ("governor {governor}", "调频策略 {governor}"),
    "noise": (
        "a sleeping task wakes {p50} ms late (p50), {p99} ms (p99)",
        "休眠任务迟到 {p50} ms（p50）、{p99} ms（p99）",
    ),
    # Axes and notes in plots.
    "axis_percentile": ("percentile of the lists", "结果列表的百分位"),
    "axis_latency": ("latency, ms", "延迟 ms"),
    "axis_seconds": ("seconds into the run", "运行时间 s"),
    "axis_mean_stages": ("mean, ms, one after the other", "均值 ms，依次累加"),
    "axis_mean_p99": ("mean ● and p99 |, ms", "均值 ● 与 p99 |，ms"),
    "axis_rate": ("messages a second; dotted: saturation", "每秒消息数；点线：饱和"),
    "axis_p50_p99": ("latency, ms: p50 —, p99 - -", "延迟 ms：p50 —，p99 - -"),
    "axis_deadline": ("deadline, seconds", "超时时间 s"),
    "axis_answered": ("stations in the list, %", "列表中的场站 %"),
    "axis_stations": ("stations of a batch", "每批次场站数"),
    "axis_batches": ("batches in flight", "同时处理的批次数"),
    "axis_us": ("µs a station", "每场站 µs"),
    "axis_heat": ("ms from the batch’s opening\n(top: the deadline)", "自批次开启起 ms\n（顶端为截止）"),
    "axis_overshoot": ("ms after the deadline", "超过截止时刻 ms"),
    "axis_still_open": ("lists still open, %", "尚未定稿的列表 %"),
    "axis_at_once": ("ms after the deadline: p50 ●, p99 |, max ○", "超过截止时刻 ms：p50 ●，p99 |，最大 ○"),
    "at_once": ("{number:,}, {what}", "{number:,}，{what}"),
    "worst_of": (
        "The worst run of {repeats}; trioagg, {rate} messages a second.",
        "{repeats} 次运行中最差的一次；trioagg，每秒 {rate} 条消息。",
    ),
    "max": ("max", "最大"),
    "stall": ("stall", "停顿"),
    "deadline_here": ("deadline {ms} ms", "截止 {ms} ms"),
    "deadline_above": ("deadline {ms} ms: {times}x further up ↑", "截止 {ms} ms：在上方 {times} 倍处 ↑"),
    "curve": ("{name}, {rate}", "{name}，{rate}"),
    # Headings.
    "workload_line": (
        "{stations} stations a message, deadline {deadline} s, {arrivals} arrivals.",
        "每条消息 {stations} 个场站，截止 {deadline} s，到达方式 {arrivals}。",
    ),
    "workload_floor": (
        " The stations alone take {floor} ms (median of the slowest of each message): “added” is what p50 has on top.",
        " 仅场站自身就需 {floor} ms（每条消息中最慢场站的中位数）；“附加”指 p50 在此之上的部分。",
    ),
    "load_title": ("How much load can it bear?", "能承受多大负载？"),
    "percentiles_title": ("How long do lists take?", "得到列表要多久？"),
    "time_title": ("Does it stay so over time?", "随时间是否稳定？"),
    "waterfall_title": ("Where does the time go?", "时间花在哪里？"),
    "heat_title": ("Which stations are late, and when?", "哪些场站迟，何时迟？"),
    "overshoot_title": ("How punctual is the deadline?", "截止时刻有多准时？"),
    "timeouts_title": ("Which deadline for which model?", "不同模型该用多长的超时时间？"),
    "overhead_title": ("What does a station cost?", "每个场站的开销是多少？"),
    "overhead_kind": ("Each station {kind}", "每个场站：{kind}"),
    "soak_title": ("{contestant}, {rate} messages a second", "{contestant}，每秒 {rate} 条消息"),
    "pipeline_title": ("From message to list", "从消息到结果列表"),
    "soak_section": ("Does it last?", "长时间运行是否稳定？"),
    "overshoot_lists": ("Lists after their deadline", "截止后的列表"),
    "timeouts_lists": ("Stations in the list", "列表中的场站"),
    "hardship_title": ("What if something breaks?", "出了问题会怎样？"),
    "delivery_title": ("What does exactly once cost?", "恰好一次的代价是多少？"),
    "faults_title": ("What is lost when everything that can break is broken?", "一切都出故障时会丢失什么？"),
    "fuzz_title": ("Does any message stop the service, or get lost in it?", "有没有消息能使服务停止或在其中丢失？"),
    "model": ("{name} (median {ms} ms)", "{name}（中位数 {ms} ms）"),
    "memory_title": ("Memory", "内存"),
    "lost_title": ("Is anything lost?", "有没有丢失？"),
    "validity_title": ("Are the runs valid?", "各次运行是否有效？"),
    # Alternative texts.
    "load_alt": (
        "Latency against messages a second, p50 and p99 of {names}; dotted vertical lines mark saturation.",
        "延迟随每秒消息数的变化，{names} 的 p50 与 p99；竖直点线标出饱和点。",
    ),
    "percentiles_alt": ("Latency by percentile of {names}.", "{names} 的延迟百分位曲线。"),
    "time_alt": ("p50, p99 and maximum of the latency over time.", "延迟的 p50、p99 与最大值随时间的变化。"),
    "waterfall_alt": ("Mean and p99 of every stage a batch passes.", "批次经过的每个阶段的均值与 p99。"),
    "heat_alt": ("Map of stations and time; the colour is the lateness.", "场站与时间的热力图，颜色表示迟到程度。"),
    "overshoot_alt": ("How long after its deadline a list was fixed.", "列表在截止时刻之后多久定稿。"),
    "timeouts_alt": (
        "Share of stations in the list against the deadline, one line a model; the recommended deadline is ringed.",
        "列表中场站比例随超时时间的变化，每个模型一条线；圈出推荐值。",
    ),
    "overhead_alt": ("Microseconds a station, of {names}.", "{names} 的每场站微秒数。"),
    # Findings: load.
    "finding_saturation": (
        "{name} carries {rate} messages a second ({stations} stations a second) before it falls behind",
        "{name} 每秒可处理 {rate} 条消息（每秒 {stations} 个场站），再多就跟不上",
    ),
    "finding_ratio": ("that is {ratio}x {rival}", "是 {rival} 的 {ratio} 倍"),
    "finding_alone": ("no other contestant was measured", "没有测量其他参与者"),
    "finding_knee": (
        "its p50 grows from {low} ms at {low_rate} to {high} ms at {high_rate} messages a second",
        "p50 从每秒 {low_rate} 条时的 {low} ms 变为每秒 {high_rate} 条时的 {high} ms",
    ),
    # Findings: percentiles.
    "finding_p50": (
        "At {rate} messages a second half of {name}’s lists are out within {p50} ms",
        "每秒 {rate} 条消息时，{name} 的一半列表在 {p50} ms 内得出",
    ),
    "finding_p50_closed": (
        "In a closed loop, which sees no waiting, half of {name}’s lists are out within {p50} ms",
        "在看不到等待的闭环中，{name} 的一半列表在 {p50} ms 内得出",
    ),
    "finding_p99": ("99 in 100 within {p99} ms", "百分之九十九在 {p99} ms 内"),
    "finding_p99_beyond": (
        "{samples} samples are too few to tell its p99",
        "{samples} 个样本不足以得出 p99",
    ),
    "finding_rival": (
        "{rival}’s {percentile} is {ms} ms at {rate}, {ratio}x trioagg’s",
        "{rival} 在每秒 {rate} 条时 {percentile} 为 {ms} ms，是 trioagg 的 {ratio} 倍",
    ),
    "finding_none_valid": (
        "No valid run of trioagg is long enough: nothing is concluded",
        "没有足够长的 trioagg 有效运行：不作结论",
    ),
    "finding_near_deadline": (
        "{names} came within a factor of two of the deadline of {ms} ms",
        "{names} 已接近 {ms} ms 的截止时刻（两倍以内）",
    ),
    "finding_far_deadline": (
        "no contestant came near the deadline of {ms} ms",
        "没有任何一方接近 {ms} ms 的截止时刻",
    ),
    # Findings: over time.
    "finding_stalls": (
        "{stalls} of {intervals} intervals stalled; the longest at {when} s with {worst} ms, where the usual p99 is "
        "{usual} ms.",
        "{intervals} 个区间中有 {stalls} 个停顿；最长的在 {when} s，为 {worst} ms，而通常的 p99 为 {usual} ms。",
    ),
    "finding_steady": (
        "No stall in {intervals} intervals: the worst list took {worst} ms, {ratio}x the usual p99 of {usual} ms.",
        "{intervals} 个区间中没有停顿：最慢的列表为 {worst} ms，是通常 p99（{usual} ms）的 {ratio} 倍。",
    ),
    "finding_memory": (
        " Memory went from {before} to {after} MiB.",
        "内存从 {before} MiB 变为 {after} MiB。",
    ),
    # Findings: waterfall.
    "finding_stations": (
        "Of {whole} ms (mean, at {rate} messages a second) the stations take {stations} ms, {share} %",
        "每秒 {rate} 条消息时，均值 {whole} ms 中，场站占 {stations} ms（{share} %）",
    ),
    "finding_own": (
        "of what is left, {stage} is the largest with {ms} ms",
        "其余部分中 {stage} 最大，为 {ms} ms",
    ),
    "finding_own_p99": ("the longest tail has {stage}: p99 {ms} ms", "尾部最长的是 {stage}：p99 为 {ms} ms"),
    "note_commit": (
        "Not in the bars, nor in the sum: the commit. The list has been read by then, and offsets are committed once a "
        "second, {mean} ms later in the mean.",
        "提交不计入条形与总和：此时列表已可读取，偏移量每秒提交一次，平均晚 {mean} ms。",
    ),
    # Findings: heat map.
    "finding_latest": (
        "{hit} of {samples} sampled answers had not come by the deadline of {deadline} ms, from {stations} of the "
        "stations, {worst} most often ({times}x).",
        "抽样的 {samples} 个回答中有 {hit} 个到 {deadline} ms 截止时仍未到；"
        "涉及 {stations} 个场站，其中 {worst} 最多（{times} 次）。",
    ),
    "finding_in_time": (
        "No sampled answer missed the deadline: the latest of {samples}, {worst}’s, came after {ms} ms, {share} % of "
        "it.",
        "抽样的回答均未错过截止时刻：{samples} 个中最晚的来自 {worst}，为 {ms} ms，占截止时间的 {share} %。",
    ),
    "heat_rows": (
        "Shown are the {shown} latest of {all} stations.",
        "图中为 {all} 个场站中最晚的 {shown} 个。",
    ),
    # Findings: overshoot.
    "finding_overshoot": (
        "{lists} lists ended by their deadline; 99 in 100 were fixed within {p99} ms after it, all within {max} ms",
        "{lists} 个列表因截止而结束；其中百分之九十九在截止后 {p99} ms 内定稿，全部在 {max} ms 内",
    ),
    "finding_overshoot_few": (
        "{lists} lists ended by their deadline; all were fixed within {max} ms after it",
        "{lists} 个列表因截止而结束；全部在截止后 {max} ms 内定稿",
    ),
    "finding_together": (
        "of {number} that expire at once all are ready within {max} ms",
        "{number} 个同时到期时全部在 {max} ms 内就绪",
    ),
    "finding_textbook": (
        "of {number} within {max} ms, where the textbook needs {theirs} ms ({ratio}x)",
        "{number} 个时在 {max} ms 内，而教科书写法需要 {theirs} ms（{ratio} 倍）",
    ),
    # Findings: timeouts.
    "finding_recommended": (
        "{model}: {seconds} s lets {share} % of the stations into the list ({others} points)",
        "{model}：{seconds} s 可使 {share} % 的场站进入列表（{others} 个百分点）",
    ),
    "recommended": ("recommended", "推荐"),
    "note_never": (
        "In brackets: what the next shorter and the next longer deadline would change. So the recommended ones come "
        "about: they are the shortest at which waiting longer brings next to nothing. Some stations never answer, "
        "however long one waits.",
        "括号内为改用相邻更短、更长的超时时间时的变化。推荐值由此而来：再等下去几乎没有收益的最短超时时间。"
        "有些场站无论等多久都不会回答。",
    ),
    # Findings: overhead.
    "finding_cost": (
        "A station that {kind} costs {us} µs under trioagg, with {stations} of them in a batch",
        "一个场站（{kind}）在 trioagg 下开销 {us} µs（每批次 {stations} 个）",
    ),
    "finding_cost_of_few": (
        "with a batch of {stations} it costs {us} µs under trioagg",
        "每批次 {stations} 个时，在 trioagg 下为 {us} µs",
    ),
    "finding_cost_rival": ("that is {ratio}x {rival} ({us} µs)", "是 {rival}（{us} µs）的 {ratio} 倍"),
    "finding_cheapest": ("no contestant is cheaper", "没有更便宜的参与者"),
    "finding_cheaper": ("{rival} is the cheapest with {us} µs", "{rival} 最便宜，为 {us} µs"),
    "finding_not_measured": ("trioagg was not measured", "没有测量 trioagg"),
    # Findings: lost.
    "lost_and_left": (
        "{name} lost {lost} answers and left {left} stations running after its list was ready",
        "{name} 丢失 {lost} 个回答，列表就绪后仍有 {left} 个场站在运行",
    ),
    "finding_none_lost_or_left": (
        "No contestant lost an answer, or left a station running after its list was ready.",
        "没有任何一方丢失回答，列表就绪后也没有场站仍在运行。",
    ),
    "finding_nothing_lost": (
        "No contestant lost a list or an answer, of {sent} messages.",
        "{sent} 条消息中，没有任何一方丢失列表或回答。",
    ),
    "finding_lost": ("Lost: {who}.", "丢失：{who}。"),
    "lost_of": ("{name} {lists} lists and {answers} answers", "{name} 丢失 {lists} 个列表、{answers} 个回答"),
    "finding_ours_whole": (" trioagg lost nothing.", "trioagg 没有丢失。"),
    # Findings: delivery, faults and fuzz.
    "finding_delivery": (
        "{delivery}: {rate} messages a second, half of the lists with their reader within {p50} ms",
        "{delivery}：每秒 {rate} 条消息，一半列表在 {p50} ms 内到达读取方",
    ),
    "finding_once": (
        "exactly once carries {ratio}x what at least once does",
        "恰好一次的处理能力是至少一次的 {ratio} 倍",
    ),
    "note_delivery": (
        "Messages a second out of a backlog; milliseconds from the intended moment of sending until a reader of what "
        "is committed has the list.",
        "每秒消息数在处理积压时测得；毫秒数从应当发送的时刻起，到只读取已提交数据的读取方拿到列表为止。",
    ),
    "finding_faults": (
        "{delivery}: of {inputs} inputs {lost} were lost and {duplicated} came twice",
        "{delivery}：{inputs} 条输入中丢失 {lost} 条，重复 {duplicated} 条",
    ),
    "finding_no_problems": ("all {cases} runs are as they must be", "全部 {cases} 次运行符合要求"),
    "finding_problems": (
        "{wrong} of {cases} runs are not as they must be",
        "{cases} 次运行中有 {wrong} 次不符合要求",
    ),
    "no_problems": ("none", "无"),
    "finding_fuzz": (
        "Of {messages} hostile messages {batches} became batches, {poison} were poison and {empty} empty",
        "{messages} 条恶意消息中，{batches} 条成为批次，{poison} 条为毒消息，{empty} 条为空",
    ),
    "finding_fuzz_whole": (
        "none is unaccounted for, and none stopped the service",
        "全部有下落，没有一条使服务停止",
    ),
    "finding_fuzz_wrong": (
        "{unaccounted} are unaccounted for, and the service stopped {stops} times",
        "{unaccounted} 条下落不明，服务停止 {stops} 次",
    ),
    "finding_growth": (
        "memory at the end is {growth}x what it was at the beginning",
        "结束时的内存是开始时的 {growth} 倍",
    ),
    "note_growth": ("–: too short a run to tell its memory.", "–：运行太短，无法判断内存。"),
    # Findings: validity.
    "finding_all_valid": ("All {runs} runs are valid.", "全部 {runs} 次运行有效。"),
    "finding_invalid": ("{bad} of {runs} runs invalid.", "{runs} 次运行中有 {bad} 次无效。"),
    "invalid": ("invalid", "无效"),
    "valid": ("valid", "有效"),
    "reason_slip": (
        "the sender’s p99 was {p99} ms late (at most {max} ms): more than a tenth of the latency’s p99 of {latency} ms",
        "发送端迟到的 p99 为 {p99} ms（最多 {max} ms）：超过延迟 p99（{latency} ms）的十分之一",
    ),
    "reason_unknown": ("the run says so itself", "该次运行自行标为无效"),
    "closed_loop": ("closed loop", "闭环"),
    # Columns.
    "col_contestant": ("contestant", "参与者"),
    "col_saturation": ("messages/s", "消息/s"),
    "col_stations": ("stations/s", "场站/s"),
    "col_ratio": ("trioagg is", "trioagg 为其"),
    "col_load": ("load", "负载"),
    "col_rate": ("messages/s", "消息/s"),
    "col_samples": ("lists", "列表数"),
    "col_added": ("added", "附加"),
    "col_mean": ("mean", "均值"),
    "col_max": ("max", "最大"),
    "col_sent": ("sent", "已发送"),
    "col_lists": ("lists", "列表"),
    "col_lists_lost": ("lists lost", "丢失的列表"),
    "col_lists_twice": ("lists twice", "重复的列表"),
    "col_answers": ("answers", "回答"),
    "col_answers_lost": ("answers lost", "丢失的回答"),
    "col_stragglers": ("stragglers", "掉队任务"),
    "col_runs": ("valid runs", "有效运行"),
    "col_slip": ("sender late, p99 / max ms", "发送端迟到 p99 / 最大 ms"),
    "col_verdict": ("verdict", "判定"),
    "col_stage": ("stage", "阶段"),
    "col_share": ("share", "占比"),
    "col_model": ("model", "模型"),
    "col_deadline": ("deadline", "超时时间"),
    "col_answered": ("in the list", "在列表中"),
    "col_of_able": ("of those that ever answer", "占会回答者"),
    "col_mean_seconds": ("mean time to the list", "得到列表的平均时间"),
    "col_choice": ("", ""),
    "col_number": ("stations", "场站数"),
    "col_bytes": ("bytes a waiting station", "每个等待场站的字节数"),
    "col_records": ("records", "记录"),
    "col_codec": ("codec", "编解码"),
    "col_to_guide": ("to the guide’s", "相对指南写法"),
    "shape": ("{stations}", "{stations}"),
    "shape_of_many": ("{stations} × {batches}", "{stations} × {batches}"),
    "path_title": ("From bytes to bytes, without a broker", "从字节到字节，不含消息代理"),
    "finding_path": (
        "trioagg takes {rate} messages a second, {ratio}x the guide’s way (records: {records})",
        "trioagg 每秒处理 {rate} 条消息，是指南写法的 {ratio} 倍（记录：{records}）",
    ),
    "note_bottleneck": (
        "≥: the sender could not send any faster; the contestant might bear more.",
        "≥：发送端已到上限，实际可能更高。",
    ),
    "col_counted": ("", ""),
    "col_first": ("first", "开始"),
    "col_most": ("most", "最多"),
    "col_last": ("last", "结束"),
    "col_rss_mib": ("memory, MiB", "内存 MiB"),
    "col_tasks": ("tasks", "任务"),
    "col_threads": ("threads", "线程"),
    "col_descriptors": ("descriptors", "文件描述符"),
    "note_cost": (
        "Columns: stations of a batch (× batches at once). µs a station, the median; in brackets the ratio to the bare "
        "nursery; ! marks answers lost.",
        "列：每批次场站数（× 同时处理的批次数）。每场站 µs（中位数）；"
        "括号内为相对裸 nursery 的倍数；! 表示丢失的回答数。",
    ),
    "finding_bytes": (
        "A station that waits takes least memory with {name}: {bytes} bytes.",
        "等待中的场站占用内存最少的是 {name}：{bytes} 字节。",
    ),
    "col_at_once": ("at once", "同时到期"),
    "col_what": ("what", "方式"),
    "col_ready": ("ready p50 / p99 / max, ms", "就绪 p50 / p99 / 最大 ms"),
    "col_delivery": ("delivery", "投递方式"),
    "col_a_commit": ("messages a commit", "每次提交的消息数"),
    "col_scenario": ("fault", "故障"),
    "col_inputs": ("inputs", "输入"),
    "col_lost": ("lost", "丢失"),
    "col_twice": ("twice", "重复"),
    "col_stall": ("longest stall", "最长停顿"),
    "col_problems": ("problems", "问题"),
    "col_messages": ("messages", "消息"),
    "col_batches": ("batches", "批次"),
    "col_poison": ("poison", "毒消息"),
    "col_empty": ("empty", "空消息"),
    "col_unaccounted": ("unaccounted", "下落不明"),
    "col_stops": ("stops", "停止次数"),
    "col_growth": ("memory growth", "内存增长"),
    "col_file": ("file", "文件"),
    "col_command": ("command", "命令"),
    "col_date": ("date", "日期"),
}

TERMS: Final[dict[str, tuple[str, str]]] = {
    "fetch": ("fetch", "拉取"),
    "queue": ("queue", "排队"),
    "decode": ("decode", "解码"),
    "start": ("start", "启动"),
    "stations": ("stations", "场站"),
    "close": ("close", "定稿"),
    "upload queue": ("upload queue", "等待上传"),
    "upload": ("upload", "上传"),
    "commit": ("commit", "提交"),
    "fast": ("fast", "快速模型"),
    "medium": ("medium", "中速模型"),
    "slow": ("slow", "慢速模型"),
    "tuned": ("tuned", "已调 GC"),
    "untuned": ("default", "默认"),
    "shielded": ("one ignores it", "一站忽略取消"),
    "textbook": ("textbook", "教科书写法"),
    "at_least_once": ("at least once", "至少一次"),
    "exactly_once": ("exactly once", "恰好一次"),
    "fault killed": ("member killed", "杀死成员进程"),
    "fault terminated": ("member terminated", "终止成员进程"),
    "fault broker_killed": ("broker killed", "杀死消息代理"),
    "fault rebalanced": ("rebalanced", "再均衡"),
    "fault zombie": ("member frozen", "冻结成员进程"),
    "fault blocked": ("loop blocked", "阻塞事件循环"),
    "fault clock_jumped": ("clock jumped", "时钟跳变"),
    "fault cut": ("connections cut", "切断连接"),
    "fault swallowed_shortly": ("network silent, shortly", "网络短暂无响应"),
    "fault swallowed_long": ("network silent, long", "网络长时间无响应"),
    "fault slow": ("network slow", "网络缓慢"),
    "fault refused": ("connections refused", "拒绝连接"),
    "fault leader_killed": ("leader killed", "杀死分区首领"),
    "fault results_deleted": ("result topic deleted", "删除结果主题"),
    "fault results_too_small": ("list too large", "列表过大"),
    "fault results_forbidden": ("writing forbidden", "禁止写入"),
    "flat": ("flat", "平坦"),
    "with a list in each": ("with a list in each", "各含一个列表"),
    "none": ("no broker", "无消息代理"),
    "poisson": ("Poisson", "泊松"),
    "fixed": ("even", "均匀"),
    "fast models, deadline 2 s": ("fast models, deadline 2 s", "快速模型，超时 2 s"),
    "medium models, deadline 5 s": ("medium models, deadline 5 s", "中速模型，超时 5 s"),
    "slow models, deadline 10 s": ("slow models, deadline 10 s", "慢速模型，超时 10 s"),
    "100 stations that never wait": ("100 stations that never wait", "100 个从不等待的场站"),
    "100 stations that sleep 20 ms": ("100 stations that sleep 20 ms", "100 个休眠 20 ms 的场站"),
    "99 stations at 5 ms and one at 200 ms": (
        "99 stations at 5 ms and one at 200 ms",
        "99 个 5 ms 的场站和一个 200 ms 的场站",
    ),
    "a bad day: failing, hanging and blocking stations": (
        "a bad day: failing, hanging and blocking stations",
        "糟糕的一天：有场站失败、挂起、阻塞",
    ),
    "never waits": ("never waits", "从不等待"),
    "one checkpoint": ("has one checkpoint", "一个检查点"),
    "10 % raise, 10 % hang": ("may raise (10 %) or hang (10 %)", "10 % 抛出异常，10 % 挂起"),
    "sleeps 1 ms": ("sleeps 1 ms", "休眠 1 ms"),
}
