import account.v1.AccountServiceGrpc;
import account.v1.AccountServiceGrpc.AccountServiceBlockingStub;
import account.v1.AddUserToOrganizationRequest;
import account.v1.BatchCheckMembershipsRequest;
import account.v1.Change;
import account.v1.CheckMembershipRequest;
import account.v1.CountOrganizationMembersRequest;
import account.v1.CreateOrganizationRequest;
import account.v1.CreateUserRequest;
import account.v1.DeleteUserRequest;
import account.v1.EraseUserRequest;
import account.v1.GetErasureRequest;
import account.v1.GetOrganizationRequest;
import account.v1.ListOrganizationMembersRequest;
import account.v1.LookupOrganizationRequest;
import account.v1.LookupUserRequest;
import account.v1.MembershipCheck;
import account.v1.MembershipCheckResult;
import account.v1.UndeleteUserRequest;
import account.v1.UpdateMembershipRequest;
import account.v1.UpdateUserRequest;
import account.v1.User;
import account.v1.WatchChangesRequest;
import account.v1.Membership;
import account.v1.Role;
import account.v1.State;
import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.protobuf.StatusProto;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/**
 * The tutorial's story with a client generated from proto/, a list by pages, a batch check, a
 * retry, a watch that is resumed, and the details of an error.
 *
 * <p>Usage: Story HOST:PORT SERVICE_CONFIG
 */
public final class Story {
  private final AccountServiceBlockingStub accounts;

  private Story(AccountServiceBlockingStub accounts) {
    this.accounts = accounts;
  }

  /** The client with a deadline for the next call. */
  private AccountServiceBlockingStub soon() {
    return accounts.withDeadlineAfter(3, TimeUnit.SECONDS);
  }

  private static void check(Object found, Object expected) {
    if (!Objects.equals(found, expected)) {
      throw new AssertionError(found + " is not " + expected);
    }
  }

  private void walkThrough() {
    for (String username : List.of("java-olivia", "java-michael")) {
      soon().createUser(CreateUserRequest.newBuilder().setUsername(username).build());
    }
    soon()
        .createOrganization(
            CreateOrganizationRequest.newBuilder()
                .setOrganizationName("java-org")
                .setFoundingUser("java-olivia")
                .build());
    CheckMembershipRequest request =
        CheckMembershipRequest.newBuilder()
            .setOrganizationName("java-org")
            .setUsername("java-michael")
            .build();
    check(soon().checkMembership(request).getIsMember(), false);
    soon()
        .addUserToOrganization(
            AddUserToOrganizationRequest.newBuilder()
                .setOrganizationName("java-org")
                .setMemberUsername("java-michael")
                .setRole(Role.ROLE_MEMBER)
                .setAddingUser("java-olivia")
                .build());
    check(soon().checkMembership(request).getRole(), Role.ROLE_MEMBER);
    BatchCheckMembershipsRequest.Builder batch = BatchCheckMembershipsRequest.newBuilder();
    for (String username : List.of("java-olivia", "java-michael", "java-nobody")) {
      batch.addChecks(
          MembershipCheck.newBuilder()
              .setOrganizationName("java-org")
              .setUsername(username)
              .setMinimumRole(Role.ROLE_ADMIN));
    }
    List<MembershipCheckResult> results =
        soon().batchCheckMemberships(batch.build()).getResultsList();
    check(
        results.stream().map(MembershipCheckResult::getSatisfied).toList(),
        List.of(true, false, false));
  }

  private void page() {
    List<String> names = new ArrayList<>();
    String token = "";
    do {
      var page =
          soon()
              .listOrganizationMembers(
                  ListOrganizationMembersRequest.newBuilder()
                      .setOrganizationName("java-org")
                      .setPageSize(1)
                      .setPageToken(token)
                      .build());
      page.getMembershipsList().stream().map(Membership::getMemberUsername).forEach(names::add);
      token = page.getNextPageToken();
    } while (!token.isEmpty());
    check(names, List.of("java-michael", "java-olivia"));
  }

  private void sendTwice() {
    CreateUserRequest create =
        CreateUserRequest.newBuilder()
            .setUsername("java-once")
            .setRequestId(UUID.randomUUID().toString())
            .build();
    check(soon().createUser(create), soon().createUser(create));
  }

  /** The first {@code want} changes. */
  private List<Change> changes(WatchChangesRequest request, int want) {
    List<Change> seen = new ArrayList<>();
    Context.CancellableContext context = Context.current().withCancellation();
    context.run(
        () -> {
          var responses = accounts.withDeadlineAfter(20, TimeUnit.SECONDS).watchChanges(request);
          while (seen.size() < want) {
            seen.addAll(responses.next().getChangesList());
          }
        });
    context.cancel(null);
    return seen.subList(0, want);
  }

  private void watch() {
    WatchChangesRequest begin =
        WatchChangesRequest.newBuilder().setOrganizationName("java-org").setOldest(true).build();
    Change first = changes(begin, 1).get(0);
    List<Change> all = new ArrayList<>(List.of(first));
    all.addAll(changes(begin.toBuilder().setCursor(first.getCursor()).build(), 2));
    check(all.stream().filter(Change::hasOrganization).count(), 1L);
    check(all.stream().filter(Change::hasMembership).count(), 2L);
  }

  /** A membership with an end and labels. */
  private void updateMembership() {
    Timestamp end =
        Timestamp.newBuilder().setSeconds(System.currentTimeMillis() / 1000 + 3600).build();
    Membership membership =
        Membership.newBuilder()
            .setOrganizationName("java-org")
            .setMemberUsername("java-michael")
            .setExpireTime(end)
            .putLabels("job", "nurse")
            .build();
    soon()
        .updateMembership(
            UpdateMembershipRequest.newBuilder()
                .setMembership(membership)
                .setActingUser("java-olivia")
                .build());
    var checked =
        soon()
            .checkMembership(
                CheckMembershipRequest.newBuilder()
                    .setOrganizationName("java-org")
                    .setUsername("java-michael")
                    .setWithLabels(true)
                    .build());
    check(checked.getExpireTime(), end);
    check(checked.getLabelsMap(), Map.of("job", "nurse"));
  }

  /** Look-ups by external id and by uid, a filtered list, and counts. */
  private void lookUp() {
    User olivia = User.newBuilder().setUsername("java-olivia").setExternalId("java-00u1").build();
    soon().updateUser(UpdateUserRequest.newBuilder().setUser(olivia).build());
    var byExternalId = LookupUserRequest.newBuilder().setExternalId("java-00u1").build();
    check(soon().lookupUser(byExternalId).getUser().getUsername(), "java-olivia");
    var get = GetOrganizationRequest.newBuilder().setOrganizationName("java-org").build();
    var organization = soon().getOrganization(get).getOrganization();
    var byUid = LookupOrganizationRequest.newBuilder().setUid(organization.getUid()).build();
    check(soon().lookupOrganization(byUid).getOrganization(), organization);
    var owners =
        ListOrganizationMembersRequest.newBuilder()
            .setOrganizationName("java-org")
            .setFilter("role = ROLE_OWNER")
            .build();
    check(soon().listOrganizationMembers(owners).getMembershipsCount(), 1);
    var count =
        CountOrganizationMembersRequest.newBuilder().setOrganizationName("java-org").build();
    check(soon().countOrganizationMembers(count).getOwnerCount(), 1L);
  }

  /** A deletion for a day, and its undeletion. */
  private void undelete() {
    var window = Duration.newBuilder().setSeconds(86400).build();
    var delete =
        DeleteUserRequest.newBuilder()
            .setUsername("java-michael")
            .setUndeleteWindow(window)
            .build();
    check(soon().deleteUser(delete).getUser().getState(), State.STATE_DELETED);
    var membership =
        CheckMembershipRequest.newBuilder()
            .setOrganizationName("java-org")
            .setUsername("java-michael")
            .build();
    check(soon().checkMembership(membership).getIsMember(), false);
    soon().undeleteUser(UndeleteUserRequest.newBuilder().setUsername("java-michael").build());
    check(soon().checkMembership(membership).getIsMember(), true);
  }

  /** An erasure and its report. */
  private void erase() {
    soon().createUser(CreateUserRequest.newBuilder().setUsername("java-erased").build());
    var erase = EraseUserRequest.newBuilder().setUsername("java-erased").build();
    var id = soon().eraseUser(erase).getErasure().getErasureId();
    var report = GetErasureRequest.newBuilder().setErasureId(id).build();
    check(soon().getErasure(report).getErasure().getPseudonym(), "erased:" + id);
  }

  private void err() throws Exception {
    try {
      soon().createUser(CreateUserRequest.newBuilder().setUsername("java-olivia").build());
    } catch (StatusRuntimeException error) {
      check(error.getStatus().getCode(), Code.ALREADY_EXISTS);
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          check(detail.unpack(ErrorInfo.class).getReason(), "USER_ALREADY_EXISTS");
          return;
        }
      }
    }
    throw new AssertionError("not refused as documented");
  }

  /** Runs the story, then the errors. */
  public static void main(String[] arguments) throws Exception {
    Map<?, ?> config = new Gson().fromJson(Files.readString(Path.of(arguments[1])), Map.class);
    @SuppressWarnings("unchecked")
    ManagedChannel channel =
        NettyChannelBuilder.forTarget(arguments[0])
            .usePlaintext()
            .defaultServiceConfig((Map<String, ?>) config)
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .build();
    Story story = new Story(AccountServiceGrpc.newBlockingStub(channel));
    story.walkThrough();
    story.page();
    story.sendTwice();
    story.watch();
    story.updateMembership();
    story.lookUp();
    story.undelete();
    story.erase();
    story.err();
    channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    System.out.println("java: the story is complete, the errors are as documented");
  }
}
