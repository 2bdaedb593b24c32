/* SPDX-License-Identifier: GPL-2.0 */
/* The transitions of ANON_VMA_LAZY; part of rmap.c, whose helpers they are made of. */

bool anon_vma_lazy_enabled __read_mostly = true;

static int __init anon_vma_lazy_setup(char *value)
{
	return kstrtobool(value, &anon_vma_lazy_enabled);
}
early_param("anon_vma_lazy", anon_vma_lazy_setup);

static int __init anon_vma_lazy_init(void)
{
	debugfs_create_bool("anon_vma_lazy", 0644, NULL, &anon_vma_lazy_enabled);
	return 0;
}
late_initcall(anon_vma_lazy_init);

/* The first anonymous page: the VMA becomes its own root VMA. */
static void vma_prepare_lazy(struct vm_area_struct *vma)
{
	struct mm_struct *mm = vma->vm_mm;

	mmap_assert_locked(mm);
	spin_lock(&mm->page_table_lock);
	if (!vma->anon_vma) {
		vma_root_get(vma);
		vma_set_anon_word(vma, (unsigned long)vma + ANON_VMA_TREE_VMA, ANON_VMA_PREPARE);
	}
	spin_unlock(&mm->page_table_lock);
}

/* A VMA whose word is a copy of a lazy one's gets a reference of its own. */
static void vma_link_root(struct vm_area_struct *vma)
{
	vma_root_get(anon_word_root(vma->anon_vma));
	anon_vma_moved(vma->anon_vma, vma->anon_vma, ANON_VMA_LINK_ROOT);
}

/* A fork's child, linked to all that its parent is linked to, and without an anon_vma of its own. */
static void vma_link_parent(struct vm_area_struct *vma, struct vm_area_struct *parent)
{
	struct anon_vma *anon_vma = vma_anon_vma(parent);

	get_anon_vma(anon_vma);
	vma_set_anon_word(vma, (unsigned long)anon_vma + ANON_VMA_TREE_PARENT,
			  ANON_VMA_LINK_PARENT);
}

/*
 * Gives back what a lazy word holds. The parent's anon_vma stays: the VMA is in its tree. Of the
 * root VMA it may have been the last reference.
 */
static void put_lazy_word(unsigned long word)
{
	if (anon_word_root(word)) {
		vma_root_put(anon_word_root(word));
	} else {
		VM_BUG_ON(RB_EMPTY_ROOT(&anon_word_tree(word)->rb_root.rb_root));
		put_anon_vma(anon_word_tree(word));
	}
}

/* Returns whether the VMA was lazy. */
static bool vma_unlink_lazy(struct vm_area_struct *vma)
{
	unsigned long word = vma->anon_vma;

	if (!anon_word_tag(word))
		return false;
	vma_set_anon_vma(vma, NULL, ANON_VMA_UNLINK);
	put_lazy_word(word);
	return true;
}

/*
 * Whether a VMA can take over its neighbour's anon_vma: if its chain then is the neighbour's. One
 * that is not lazy, or a root VMA of its own, has no chain yet; a fork's child has its parent's.
 */
bool anon_vma_may_share(struct vm_area_struct *theirs, struct vm_area_struct *vma,
			struct anon_vma *anon_vma)
{
	struct anon_vma_chain *avc, *their;
	int more = 0;

	if (list_empty(&vma->anon_vma_chain))
		return list_is_singular(&theirs->anon_vma_chain);
	list_for_each_entry(their, &theirs->anon_vma_chain, same_vma)
		more++;
	list_for_each_entry(avc, &vma->anon_vma_chain, same_vma) {
		bool both = false;

		list_for_each_entry(their, &theirs->anon_vma_chain, same_vma)
			both |= their->anon_vma == avc->anon_vma;
		if (!both || avc->anon_vma == anon_vma)
			return false;
		more--;
	}
	return more == 1;
}

/* The folio's word follows the VMA's: walks of the reverse map begin at an anon_vma again. */
static int folio_leaves_root(pte_t *pte, unsigned long address, unsigned long next,
			     struct mm_walk *walk)
{
	pte_t value = ptep_get(pte);
	struct folio *folio;

	if (!pte_present(value))
		return 0;
	folio = vm_normal_folio(walk->vma, address, value);
	if (folio && folio_test_lazy_vma(folio))
		WRITE_ONCE(folio->mapping, walk->private);
	return 0;
}

static const struct mm_walk_ops folio_leaves_root_ops = {
	.pte_entry = folio_leaves_root,
	.walk_lock = PGWALK_WRLOCK_VERIFY,
};

/*
 * Gives a lazy VMA an anon_vma: that of a neighbour, if it may share it, or a new one, which is a
 * root, or the child of the anon_vma that it has in common with its parent.
 */
static int vma_upgrade_lazy(struct vm_area_struct *vma)
{
	unsigned long word = vma->anon_vma;
	struct anon_vma *parent = anon_word_tree(word);
	struct anon_vma *anon_vma, *allocated = NULL;
	struct anon_vma_chain *avc;

	mmap_assert_write_locked(vma->vm_mm);
	avc = anon_vma_chain_alloc(GFP_KERNEL);
	if (!avc)
		return -ENOMEM;
	anon_vma = find_mergeable_anon_vma(vma);
	if (!anon_vma) {
		anon_vma = allocated = anon_vma_alloc();
		if (!anon_vma) {
			anon_vma_chain_free(avc);
			return -ENOMEM;
		}
		if (parent) {
			anon_vma->root = parent->root;
			anon_vma->parent = parent;
		}
	}

	anon_vma_lock_write(anon_vma);
	/* Not for one that is shared, which has its reference on the root already. */
	if (anon_vma->root != anon_vma &&
	    (allocated || IS_ENABLED(CONFIG_ANON_VMA_LAZY_AS_POSTED)))
		get_anon_vma(anon_vma->root);
	if (allocated)
		anon_vma->parent->num_children++;
	vma_set_anon_vma(vma, anon_vma, allocated ? ANON_VMA_UPGRADE : ANON_VMA_UPGRADE_SHARED);
	anon_vma_chain_assign(vma, avc, anon_vma);
	anon_rmap_tree_insert(avc, anon_vma);
	anon_vma->num_active_vmas++;
	anon_vma_unlock_write(anon_vma);

	if (anon_word_root(word))
		walk_page_range_vma(vma, vma->vm_start, vma->vm_end, &folio_leaves_root_ops,
				    (void *)anon_vma + FOLIO_MAPPING_ANON);
	put_lazy_word(word);
	return 0;
}
