// SPDX-License-Identifier: GPL-2.0
/*
 * How many VMAs are in which state, and how often and why they went from one to another, in debugfs
 * as "anon_vma": lines "state STATE NUMBER" and "move WHY FROM TO NUMBER".
 */
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/rmap.h>
#include <linux/seq_file.h>

static atomic_long_t states[ANON_VMA_STATES];
static atomic_long_t moves[ANON_VMA_EVENTS][ANON_VMA_STATES][ANON_VMA_STATES];

static const char *const state_names[ANON_VMA_STATES] = {
	[ANON_VMA_STATE_NONE] = "none",
	[ANON_VMA_STATE_REGULAR] = "regular",
	[ANON_VMA_STATE_TAG_1] = ANON_VMA_TAG_1_NAME,
	[ANON_VMA_STATE_TAG_2] = ANON_VMA_TAG_2_NAME,
	[ANON_VMA_STATE_UNMAPPED] = "unmapped",
	[ANON_VMA_STATE_GONE] = "gone",
};

#define NAME(id, text) [ANON_VMA_##id] = text,
static const char *const event_names[ANON_VMA_EVENTS] = { ANON_VMA_EVENT_LIST(NAME) };
#undef NAME

static enum anon_vma_state state_of(unsigned long word)
{
	unsigned long tag = anon_word_tag(word);

	WARN_ON_ONCE(!anon_word_legal(word));
	if (tag)
		return tag == 1 ? ANON_VMA_STATE_TAG_1 : ANON_VMA_STATE_TAG_2;
	return word ? ANON_VMA_STATE_REGULAR : ANON_VMA_STATE_NONE;
}

static void count(enum anon_vma_state from, enum anon_vma_state to, enum anon_vma_event event)
{
	atomic_long_dec(&states[from]);
	atomic_long_inc(&states[to]);
	atomic_long_inc(&moves[event][from][to]);
}

void anon_vma_moved(unsigned long from, unsigned long to, enum anon_vma_event event)
{
	count(state_of(from), state_of(to), event);
}

/* A VMA begins with this word, or ends with it. */
void anon_vma_born(unsigned long word, enum anon_vma_event event)
{
	count(ANON_VMA_STATE_GONE, state_of(word), event);
}

void anon_vma_gone(unsigned long word)
{
	count(state_of(word), ANON_VMA_STATE_GONE, ANON_VMA_FREE);
}

/* A VMA is no mapping any longer, and is still referred to; then it is not. */
void anon_vma_unmapped(unsigned long word)
{
	count(state_of(word), ANON_VMA_STATE_UNMAPPED, ANON_VMA_FREE);
}

void anon_vma_forgotten(void)
{
	count(ANON_VMA_STATE_UNMAPPED, ANON_VMA_STATE_GONE, ANON_VMA_FREE);
}

/* Orders what was written to the new anon_vma before it can be found, as a release would. */
unsigned long vma_set_anon_word(struct vm_area_struct *vma, unsigned long word,
				enum anon_vma_event event)
{
	unsigned long old = xchg(&vma->anon_vma, word);

	anon_vma_moved(old, word, event);
	return old;
}

bool vma_cmpxchg_anon_word(struct vm_area_struct *vma, unsigned long from, unsigned long to,
			   enum anon_vma_event event)
{
	if (cmpxchg(&vma->anon_vma, from, to) != from)
		return false;
	anon_vma_moved(from, to, event);
	return true;
}

static int anon_vma_show(struct seq_file *file, void *unused)
{
	for (int i = 0; i < ANON_VMA_STATE_GONE; i++)
		if (state_names[i])
			seq_printf(file, "state %s %ld\n", state_names[i],
				   atomic_long_read(&states[i]));
	for (int i = 0; i < ANON_VMA_EVENTS; i++)
		for (int j = 0; j < ANON_VMA_STATES; j++)
			for (int k = 0; k < ANON_VMA_STATES; k++)
				if (atomic_long_read(&moves[i][j][k]))
					seq_printf(file, "move %s %s %s %ld\n", event_names[i],
						   state_names[j], state_names[k],
						   atomic_long_read(&moves[i][j][k]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(anon_vma);

static int __init anon_vma_word_init(void)
{
	debugfs_create_file("anon_vma", 0444, NULL, NULL, &anon_vma_fops);
	return 0;
}
late_initcall(anon_vma_word_init);
