package id.bonafide.interop;

import io.spiffe.bundle.jwtbundle.JwtBundleSet;
import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.exception.X509ContextException;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.math.BigInteger;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Drives a Workload API with java-spiffe, whose gRPC stack sends the path of the socket as
 * {@code :authority}. The socket comes from SPIFFE_ENDPOINT_SOCKET.
 *
 * <p>usage: Interop EXPECTED-SPIFFE-ID AUDIENCE SERIALS TIMEOUT-SECONDS
 */
public final class Interop {
  private Interop() {}

  private static void check(String name, boolean condition, Object seen) {
    if (!condition) {
      System.out.println("FAIL " + name + ": " + seen);
      System.exit(1);
    }
    System.out.println("ok " + name);
  }

  /** An entry that was just made takes a moment to reach the agent. */
  private static X509Context first(WorkloadApiClient client, long seconds) throws Exception {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
    while (true) {
      try {
        return client.fetchX509Context();
      } catch (X509ContextException refused) {
        if (System.nanoTime() > deadline) {
          throw refused;
        }
        Thread.sleep(100);
      }
    }
  }

  public static void main(String[] args) throws Exception {
    SpiffeId expected = SpiffeId.parse(args[0]);
    String audience = args[1];
    int wanted = Integer.parseInt(args[2]);
    long timeout = Long.parseLong(args[3]);

    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      X509Context context = first(client, timeout);
      check("fetchX509Context", context.getDefaultSvid().getSpiffeId().equals(expected), context);
      X509BundleSet bundles = client.fetchX509Bundles();
      X509SvidValidator.verifyChain(context.getDefaultSvid().getChain(), bundles);
      System.out.println("ok X509SvidValidator.verifyChain");

      JwtSvid token = client.fetchJwtSvid(audience, "second");
      check("fetchJwtSvid", token.getSpiffeId().equals(expected), token);
      JwtBundleSet jwtBundles = client.fetchJwtBundles();
      JwtSvid parsed = JwtSvid.parseAndValidate(token.getToken(), jwtBundles, Set.of("second"));
      check("JwtSvid.parseAndValidate", parsed.getSpiffeId().equals(expected), parsed);
      JwtSvid validated = client.validateJwtSvid(token.getToken(), audience);
      check("validateJwtSvid", validated.getSpiffeId().equals(expected), validated);

      Set<BigInteger> serials = ConcurrentHashMap.newKeySet();
      List<Throwable> errors = new CopyOnWriteArrayList<>();
      CountDownLatch enough = new CountDownLatch(1);
      client.watchX509Context(new Watcher<>() {
        @Override
        public void onUpdate(X509Context update) {
          serials.add(update.getDefaultSvid().getLeaf().getSerialNumber());
          if (serials.size() >= wanted) {
            enough.countDown();
          }
        }

        @Override
        public void onError(Throwable error) {
          errors.add(error);
          enough.countDown();
        }
      });
      enough.await(timeout, TimeUnit.SECONDS);
      check("one stream sees rotations", serials.size() >= wanted && errors.isEmpty(),
          serials.size() + " serials, errors " + errors);
    }
    System.out.println("PASS");
    System.exit(0);
  }
}
